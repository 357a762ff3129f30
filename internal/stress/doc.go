// Package stress tests what a peer promises to a server that anybody may connect
// to: under hostile bytes, slow and silent connections, floods and load it goes on
// to serve the others and stays small. The server is a process of its own, so that
// what it takes can be measured. It has no code of its own to import.
//
//	go test ./internal/stress                          # scaled down
//	go test ./internal/stress -v -stress.long          # the full figures
package stress
