// node bundle.js FILE: the client of this folder as one script for a page.
const { buildSync } = require("esbuild");

buildSync({ entryPoints: [`${__dirname}/client.js`], bundle: true, outfile: process.argv[2], logLevel: "error" });
