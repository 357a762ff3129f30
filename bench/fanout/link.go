package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// A link leads from a server to the process with its members. By it the server says, before it sends, how
// many deliveries there will be in all, and hears when so many were counted. That takes no allocations and
// two system calls of the server, so that what a message costs can be seen beside it.
type link struct {
	conn     net.Conn
	patience time.Duration
	buf      [8]byte
}

// expect says how many deliveries there will be.
func (l *link) expect(deliveries int64) error {
	binary.BigEndian.PutUint64(l.buf[:], uint64(deliveries))
	_, err := l.conn.Write(l.buf[:])
	return err
}

// await waits until so many were counted. The members' side gives up first; then the link ends.
func (l *link) await(deliveries int64) error {
	if err := l.conn.SetReadDeadline(time.Now().Add(2*l.patience + time.Second)); err != nil {
		return err
	}
	if _, err := io.ReadFull(l.conn, l.buf[:]); err != nil {
		return fmt.Errorf("the members have not received %d messages: %w", deliveries, err)
	}
	if n := int64(binary.BigEndian.Uint64(l.buf[:])); n != deliveries {
		return fmt.Errorf("the members have counted %d deliveries of %d", n, deliveries)
	}
	return nil
}

// confirm is the other end: for each number of deliveries that comes it waits until so many were counted, and
// says so. It ends with the connection, and closes it after a failure, which the tally has then.
func confirm(conn net.Conn, t *tally, patience time.Duration) {
	defer conn.Close()
	var buf [8]byte
	for {
		if _, err := io.ReadFull(conn, buf[:]); err != nil {
			return
		}
		if err := t.wait(int64(binary.BigEndian.Uint64(buf[:])), patience); err != nil {
			t.fail(err)
			return
		}
		if _, err := conn.Write(buf[:]); err != nil {
			return
		}
	}
}
