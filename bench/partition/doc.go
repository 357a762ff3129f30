// Package partition tests how long calls wait when the network falls silent: with the plugin heartbeat, with
// what a peer does by default, and with grpc-go as it is by default.
//
//	go test ./partition -v -long
//
// takes two minutes on Linux, with the right to make network namespaces; without -long it takes seconds.
package partition
