// Package wiretest holds a second, independent implementation of the wire
// format and tests a peer against it, byte for byte over TCP. It has no code of
// its own to import.
package wiretest
