// Only for building h2spec for the tests: see build.sh. To change its version, change it here and in build.sh, and run
// `go mod tidy`.
module onelane.test/h2spec

go 1.24.6

// The newest that the Go module proxy serves: from v2.3.0 on, h2spec has a go.mod whose path lacks /v2, so its later
// tags (the last is v2.6.0) are no Go versions. It has no go.mod of its own; what it needs is pinned below.
require github.com/summerwind/h2spec v2.2.1+incompatible // indirect

require (
	github.com/fatih/color v1.18.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/mattn/go-colorable v0.1.13 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	github.com/spf13/cobra v1.10.2 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	golang.org/x/net v0.47.0 // indirect
	golang.org/x/sys v0.38.0 // indirect
	golang.org/x/text v0.31.0 // indirect
)

tool github.com/summerwind/h2spec/cmd/h2spec
