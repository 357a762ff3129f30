module github.com/henrylee2cn/teleport/examples/stream

go 1.26.0

require (
	github.com/henrylee2cn/teleport v0.0.0
	github.com/schollz/progressbar/v3 v3.18.0
)

require (
	github.com/henrylee2cn/ameda v1.3.6 // indirect
	github.com/henrylee2cn/goutil v0.0.0-20200528092701-9d8a093584ee // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/mitchellh/colorstring v0.0.0-20190213212951-d06e56a500db // indirect
	github.com/modern-go/concurrent v0.0.0-20180228061459-e0a39a4cb421 // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	github.com/rivo/uniseg v0.4.7 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/term v0.28.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/henrylee2cn/teleport => ../..
