module github.com/henrylee2cn/teleport/plugin/describe

go 1.26.0

replace github.com/henrylee2cn/teleport => ../..

require (
	github.com/google/jsonschema-go v0.4.3
	github.com/henrylee2cn/teleport v0.0.0
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3
	github.com/stretchr/testify v1.12.1
	go.uber.org/goleak v1.3.0
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/henrylee2cn/ameda v1.3.6 // indirect
	github.com/henrylee2cn/goutil v0.0.0-20200528092701-9d8a093584ee // indirect
	github.com/json-iterator/go v1.1.12 // indirect
	github.com/modern-go/concurrent v0.0.0-20180228061459-e0a39a4cb421 // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.14.0 // indirect
)
