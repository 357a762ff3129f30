package systems

import (
	"fmt"
	"log"
	"net"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// The floors are how little a call can cost: a client and two servers on the bare
// connection that decode header and body, route by path, run the handler and
// gather what they write. There is nothing else: no limits but those of the
// parser, no timeouts, no hooks, no panics caught, no draining.

var floorA = System{
	Name:  "floorA",
	About: "the least a call can cost, handlers on the reading goroutine",
	Serve: func(w *payload.Work) (Server, error) {
		return serveFloor(func(conn net.Conn) { serveFloorA(conn, floorRoutes(w)) })
	},
	NewClient: newFloorClient,
}

var floorB = System{
	Name:  "floorB",
	About: "the same, handlers on a pool of goroutines",
	Serve: func(w *payload.Work) (Server, error) {
		routes := floorRoutes(w)
		jobs := make(chan floorJob, floorQueue)
		for range floorWorkers {
			go work(jobs)
		}
		return serveFloor(func(conn net.Conn) { serveFloorB(conn, routes, jobs) })
	},
	NewClient: newFloorClient,
}

const (
	floorWorkers = 16
	floorQueue   = 1024
	floorGather  = 256 << 10 // bytes of replies that are not held back any longer
)

type floorHandler func(*payload.Message)

func floorRoutes(w *payload.Work) map[string]floorHandler {
	routes := make(map[string]floorHandler)
	for _, k := range payload.Kinds() {
		routes[k.Path()] = func(m *payload.Message) { w.Handle(k, m) }
	}
	return routes
}

func serveFloor(serve func(net.Conn)) (Server, error) {
	ln, err := listen()
	if err != nil {
		return nil, err
	}
	go accept(ln, serve)
	return server{addr: ln.Addr().String(), close: func() { ln.Close() }}, nil
}

// serveFloorA runs the handlers itself, and writes the replies when everything
// that was read is answered.
func serveFloorA(conn net.Conn, routes map[string]floorHandler) {
	defer conn.Close()
	var out []byte
	flush := func() error {
		if len(out) == 0 {
			return nil
		}
		_, err := conn.Write(out)
		out = out[:0]
		return err
	}
	refuse := func(id []byte) error {
		out = appendRefusal(out, id)
		return nil
	}
	in := frameReader{conn: conn, idle: flush, refuse: refuse}
	for {
		h, m, handle, err := readCall(&in, routes)
		if err != nil {
			return
		}
		handle(m)
		if out, err = appendFrame(out, h.slot, wireReply, "", 200, m); err != nil {
			log.Print(err)
			return
		}
		if len(out) >= floorGather {
			if flush() != nil {
				return
			}
		}
	}
}

// readCall reads the next frame, routes it and decodes its body.
func readCall(in *frameReader, routes map[string]floorHandler) (wireHeader, *payload.Message, floorHandler,
	error) {
	h, body, err := in.next()
	if err != nil {
		return h, nil, nil, err
	}
	handle := routes[string(h.uri)]
	if handle == nil {
		err := fmt.Errorf("floor: no route %q", h.uri)
		log.Print(err)
		return h, nil, nil, err
	}
	m := new(payload.Message)
	return h, m, handle, decodeMessage(body, m)
}

// floorJob is a call that was read and waits for a worker.
type floorJob struct {
	handle floorHandler
	m      *payload.Message
	slot   int
	out    *gatherer
}

// serveFloorB hands every call to the workers.
func serveFloorB(conn net.Conn, routes map[string]floorHandler, jobs chan<- floorJob) {
	defer conn.Close()
	out := &gatherer{conn: conn}
	in := frameReader{conn: conn, refuse: out.refuse}
	for {
		h, m, handle, err := readCall(&in, routes)
		if err != nil {
			return
		}
		jobs <- floorJob{handle: handle, m: m, slot: h.slot, out: out}
	}
}

// work runs handlers until the process ends.
func work(jobs <-chan floorJob) {
	for j := range jobs {
		j.handle(j.m)
		if err := j.out.send(j.slot, wireReply, "", 200, j.m); err != nil {
			j.out.conn.Close()
		}
	}
}

func newFloorClient(addr string) (Client, error) {
	return dialer(func() (Conn, error) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		c := &floorConn{out: gatherer{conn: conn}}
		go c.read()
		return c, nil
	}), nil
}

// floorConn is the client of both floors.
type floorConn struct {
	out   gatherer
	calls pending
}

func (c *floorConn) Close() { c.out.conn.Close() }

// read decodes replies, and wakes who waits for them, until the connection ends.
func (c *floorConn) read() {
	in := frameReader{conn: c.out.conn, refuse: c.out.refuse}
	for {
		h, body, err := in.next()
		if err != nil {
			c.calls.fail(fmt.Errorf("reading: %w", err))
			c.out.conn.Close()
			return
		}
		call := c.calls.take(h.slot)
		if call == nil {
			continue
		}
		if h.code != 200 {
			err = fmt.Errorf("floor: status %d", h.code)
		} else {
			err = decodeMessage(body, call.out)
		}
		call.done <- err
	}
}

func (c *floorConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	in, uri, call := payload.New(data), k.Path(), newPendingCall()
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Message)
		call.out = out
		slot, err := c.calls.add(call)
		if err != nil {
			return err
		}
		if err := c.out.send(slot, wirePull, uri, 0, in); err != nil {
			return err
		}
		if err := <-call.done; err != nil {
			return err
		}
		return out.Check(id, len(data))
	}, nil
}
