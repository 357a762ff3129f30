package tptest

import (
	"fmt"
	"testing"
	"time"

	"github.com/henrylee2cn/teleport/internal/option"
)

// Option is an option of [Pair], [TryPair] and [NewNetwork].
type Option func(*options)

type options struct {
	toServer, toClient Faults
	buffer             int
	address            string
	grace              time.Duration
	ignored            []string
	err                error // the first thing that is wrong
}

func (o *options) fail(err error) {
	if o.err == nil {
		o.err = err
	}
}

// Both begins with the faults on both ways.
func Both(f Faults) Option {
	return func(o *options) { ToServer(f)(o); ToClient(f)(o) }
}

// ToServer begins with the faults for what the client writes.
func ToServer(f Faults) Option {
	return func(o *options) {
		if err := f.problem(); err != nil {
			o.fail(err)
		}
		o.toServer = f
	}
}

// ToClient begins with the faults for what the server writes.
func ToClient(f Faults) Option {
	return func(o *options) {
		if err := f.problem(); err != nil {
			o.fail(err)
		}
		o.toClient = f
	}
}

// Buffer is how many bytes each way holds, those that are under way included, before writing waits: 64 KiB
// without this option.
func Buffer(bytes int) Option {
	return func(o *options) {
		if bytes <= 0 {
			o.fail(fmt.Errorf("tptest: Buffer: %d is not positive; expected a number of bytes", bytes))
		}
		o.buffer = bytes
	}
}

// Address is the address that the client of a pair is taken to have dialled, for peers with TLS: the
// certificate must be for its host, unless the client's tls.Config has a ServerName. It is 127.0.0.1:9090
// without this option. On a network a client dials addresses of its own.
func Address(hostport string) Option {
	return func(o *options) {
		if hostport == "" {
			o.fail(fmt.Errorf("tptest: Address: it is empty; expected host:port"))
		}
		o.address = hostport
	}
}

// Grace is how long handlers, and goroutines that they have started, may run on at the end of the test, after
// the peers were closed: five seconds without this option, of the bubble's clock in a bubble.
func Grace(d time.Duration) Option {
	return func(o *options) {
		if d < 0 {
			o.fail(fmt.Errorf("tptest: Grace: %v is negative; expected how long handlers may run on", d))
		}
		o.grace = d
	}
}

// Ignore lets goroutines be left at the end of the test that have one of these functions on their stack, by
// their full names: "net/http.(*persistConn).readLoop".
func Ignore(functions ...string) Option {
	return func(o *options) { o.ignored = append(o.ignored, functions...) }
}

// apply returns the options. It ends the test if one is wrong.
func apply(t testing.TB, caller string, list []Option) *options {
	t.Helper()
	checkTest(t, caller)
	o := &options{address: "127.0.0.1:9090", grace: 5 * time.Second}
	for i, f := range list {
		if f == nil {
			t.Fatalf("tptest: %s: option %d of %d is nil", caller, i+1, len(list))
		}
	}
	option.Apply("tptest: "+caller, o, list)
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o
}
