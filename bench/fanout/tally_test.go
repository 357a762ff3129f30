package main

import (
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// requireError fails unless err has the text, or is nil if the text is empty.
func requireError(t *testing.T, err error, text string) {
	t.Helper()
	if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
		t.Fatalf("the error is %v, want %q", err, text)
	}
}

// message returns the message with the number.
func message(number uint64) []byte {
	b := newMessage()
	stamp(b, number, time.Now())
	return b
}

func TestMessages(t *testing.T) {
	sent := time.Unix(1_800_000_000, 123_456_789)
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		err    string
	}{
		{"as it was sent", func(b []byte) []byte { return b }, ""},
		{"too short", func(b []byte) []byte { return b[:len(b)-1] }, "a message of 1023 bytes"},
		{"too long", func(b []byte) []byte { return append(b, 0) }, "a message of 1025 bytes"},
		{"empty", func([]byte) []byte { return nil }, "a message of 0 bytes"},
		{"another byte at the end", func(b []byte) []byte { b[len(b)-1]++; return b }, "message 7 has"},
		{"another byte of the text", func(b []byte) []byte { b[textAt]++; return b }, "message 7 has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newMessage()
			stamp(b, 7, sent)
			number, at, err := read(c.change(b))
			requireError(t, err, c.err)
			if err == nil && (number != 7 || !at.Equal(sent)) {
				t.Errorf("message %d of %v", number, at)
			}
		})
	}
}

func TestMemberFindsWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name     string
		anyOrder bool
		numbers  []uint64
		err      string // of the last one
	}{
		{"in order", false, []uint64{0, 1, 2}, ""},
		{"one is lost", false, []uint64{0, 2}, "message 2 came where 1 was expected"},
		{"one comes twice", false, []uint64{0, 1, 1}, "message 1 came where 2 was expected"},
		{"the first one is lost", false, []uint64{1}, "message 1 came where 0 was expected"},
		{"any order", true, []uint64{2, 0, 1, 3, 66, 4}, ""},
		{"any order, one comes twice", true, []uint64{0, 1, 0}, "message 0 came twice"},
		{"any order, one comes twice before an earlier one", true, []uint64{0, 2, 2}, "message 2 came twice"},
		{"any order, one is lost", true, []uint64{0, 2, 65}, "message 1: 64 messages or more"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &member{tally: newTally(), anyOrder: c.anyOrder}
			for _, number := range c.numbers[:len(c.numbers)-1] {
				requireError(t, m.receive(message(number)), "")
			}
			requireError(t, m.receive(message(c.numbers[len(c.numbers)-1])), c.err)
			want := int64(len(c.numbers))
			if c.err != "" {
				want--
			}
			if n := m.tally.delivered.Load(); n != want {
				t.Errorf("%d deliveries were counted of %d", n, want)
			}
		})
	}
}

// A member that waits for one message takes those that come before it, up to 64.
func TestMemberWithMessagesInReverse(t *testing.T) {
	m := &member{tally: newTally(), anyOrder: true}
	for number := 63; number >= 0; number-- {
		requireError(t, m.receive(message(uint64(number))), "")
	}
	requireError(t, m.receive(message(64)), "")
	if m.next != 65 || m.early != 0 {
		t.Errorf("the next message is %d, and there are %b", m.next, m.early)
	}
}

func TestTallyWaits(t *testing.T) {
	for _, c := range []struct {
		name     string
		before   int // deliveries before the wait
		fails    error
		patience time.Duration
		err      string
	}{
		{"they have come", 3, nil, patience, ""},
		{"they come", 0, nil, patience, ""},
		{"some come", 1, nil, patience, ""},
		{"too many", 4, nil, patience, "4 deliveries were counted"},
		{"a member fails", 2, errors.New("it broke"), patience, "it broke"},
		{"one is missing", 2, nil, time.Millisecond, "2 of 3 deliveries have come"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tl := newTally()
			for range c.before {
				tl.deliver(time.Millisecond)
			}
			result := make(chan error, 1)
			go func() { result <- tl.wait(3, c.patience) }()
			if c.fails != nil {
				tl.fail(c.fails)
				tl.fail(errors.New("the first failure counts"))
			} else if c.patience == patience {
				for range 3 - c.before {
					tl.deliver(time.Millisecond)
				}
			}
			requireError(t, <-result, c.err)
		})
	}
}

func TestLink(t *testing.T) {
	start := func(t *testing.T, p time.Duration) (*link, *tally) {
		near, far := net.Pipe()
		tl := newTally()
		over := make(chan struct{})
		go func() { defer close(over); confirm(far, tl, p) }()
		t.Cleanup(func() { near.Close(); <-over })
		return &link{conn: near, patience: p}, tl
	}
	t.Run("all have come", func(t *testing.T) {
		l, tl := start(t, patience)
		for n := range int64(3) {
			requireError(t, l.expect(n+1), "")
			tl.deliver(0)
			requireError(t, l.await(n+1), "")
		}
	})
	t.Run("one is missing", func(t *testing.T) {
		l, tl := start(t, time.Millisecond)
		requireError(t, l.expect(2), "")
		tl.deliver(0)
		requireError(t, l.await(2), "the members have not received 2 messages")
		requireError(t, tl.failure(), "1 of 2 deliveries")
	})
	t.Run("another number", func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		go far.Write(binary.BigEndian.AppendUint64(nil, 5))
		l := &link{conn: near, patience: patience}
		requireError(t, l.await(6), "counted 5 deliveries of 6")
	})
	t.Run("an end", func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		far.Close()
		if err := (&link{conn: near, patience: patience}).await(1); err == nil {
			t.Error("there is no error")
		}
	})
}
