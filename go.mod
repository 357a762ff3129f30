module github.com/henrylee2cn/teleport

go 1.26.0

require (
	github.com/golang/protobuf v1.5.4
	github.com/henrylee2cn/goutil v0.0.0-20200528092701-9d8a093584ee
	github.com/json-iterator/go v1.1.12
	github.com/stretchr/testify v1.12.1
	go.uber.org/goleak v1.3.0
	golang.org/x/sys v0.49.0
	golang.org/x/time v0.12.0
	google.golang.org/protobuf v1.36.12
)

require (
	github.com/henrylee2cn/ameda v1.3.6 // indirect
	github.com/modern-go/concurrent v0.0.0-20180228061459-e0a39a4cb421 // indirect
	github.com/modern-go/reflect2 v1.0.2 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
