// Package partition tests what becomes of sessions when the network falls silent
// or the other side resets the connection: on real TCP, between network
// namespaces that the tests make. It has no code of its own to import.
//
//	go test ./internal/partition -run TestPartition -partition -v
//
// runs it with the timeouts that a peer has by default, for a minute; without
// -partition they are a second each.
package partition
