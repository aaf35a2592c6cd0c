// The stock grpc-js client, without anything of ours: calls every type of method and prints what came back, as JSON.
// node client.js ADDRESS KEY
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const root = path.join(__dirname, "..", "..");
const definition = loader.loadSync("tests/echo/v1/echo.proto", {
  includeDirs: [path.join(root, "tests", "protos"), path.join(root, "runtime", "onelane", "protos")],
  keepCase: true,
});
const { Echo } = grpc.loadPackageDefinition(definition).echo.v1;

async function main(address, key) {
  const client = new Echo(address, grpc.credentials.createInsecure());
  const metadata = new grpc.Metadata();
  metadata.set("onelane-debug", "1");
  const seen = {};

  await new Promise((resolve, reject) => {
    const call = client.Unary({ key, text: "one" }, metadata, (error, reply) => {
      if (error) reject(error);
      else seen.unary = reply;
    });
    call.on("status", (status) => {
      seen.trailers = status.metadata.getMap();
      resolve();
    });
  });
  seen.download = [];
  for await (const reply of client.Download({ key, text: "d", times: 3 })) seen.download.push(reply.shard);
  seen.upload = await new Promise((resolve, reject) => {
    const call = client.Upload((error, reply) => (error ? reject(error) : resolve(reply)));
    call.write({ key, text: "a" });
    call.write({ key, text: "b" });
    call.end();
  });
  const chat = client.Chat();
  chat.write({ key, text: "x" });
  chat.write({ key, text: "y" });
  chat.end();
  seen.chat = [];
  for await (const reply of chat) seen.chat.push(reply.text);
  seen.error = await new Promise((resolve) => {
    client.Misbehave({ key, order: "abort" }, (error) => resolve({ code: error.code, details: error.details }));
  });
  console.log(JSON.stringify(seen));
  client.close();
}

main(process.argv[2], process.argv[3]).catch((error) => {
  console.error(error);
  process.exit(1);
});
