// Package sockopt gets and sets properties of TCP connections and of the process that package net does not
// know. On systems that do not have them the results are zero.
package sockopt

// Sent is what the kernel knows of a connection's output, in bytes: how much the other side has acknowledged
// since the connection began, and how much it has not.
type Sent struct{ Acked, Unacked uint64 }
