package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
)

// messageSize is how long each message is, in bytes.
const messageSize = 1 << 10

// textAt is where the text of a message begins: before it are its number and its time, big-endian.
const textAt = 16

// text is what all messages say behind their number and time: quotes of a market, which a compressor makes
// shorter as it does with what programs send.
var text = func() []byte {
	var b []byte
	for i := 0; len(b) < messageSize; i++ {
		b = fmt.Appendf(b, `{"symbol":"S%02d","bid":%d.%02d,"ask":%d.%02d},`, i, 100+7*i%50, 13*i%100,
			101+7*i%50, 29*i%100)
	}
	return b[:messageSize-textAt]
}()

// newMessage returns memory for a message, to be stamped.
func newMessage() []byte {
	return append(make([]byte, textAt, messageSize), text...)
}

// stamp makes b the message with the number, sent at the time.
func stamp(b []byte, number uint64, at time.Time) {
	binary.BigEndian.PutUint64(b, number)
	binary.BigEndian.PutUint64(b[8:], uint64(at.UnixNano()))
}

// read checks a message and returns its number and when it was sent.
func read(b []byte) (number uint64, at time.Time, err error) {
	if len(b) != messageSize {
		return 0, at, fmt.Errorf("a message of %d bytes, where it has %d", len(b), messageSize)
	}
	number = binary.BigEndian.Uint64(b)
	if !bytes.Equal(b[textAt:], text) {
		return number, at, fmt.Errorf("message %d has another text than it was sent with", number)
	}
	return number, time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))), nil
}
