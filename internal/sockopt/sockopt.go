// Package sockopt is what a program may ask and tell the kernel about a TCP connection, and what of
// that package net does not know. Where a system has none of it the answers are zero.
package sockopt

// Sent is what the kernel knows of a connection's output, in bytes: what the other side has
// acknowledged since the connection began, and what it has not.
type Sent struct{ Acked, Unacked uint64 }
