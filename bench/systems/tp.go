package systems

import (
	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/bench/payload"
)

var tpController = System{
	Name:  "tp",
	About: "this framework: a controller, protobuf bodies",
	Push:  true,
	Serve: func(w *payload.Work) (Server, error) {
		return serveTP(func(peer *tp.Peer) {
			peer.PullRouter.Reg(&Bench{work: w})
			peer.PushRouter.Reg(&Note{work: w})
		})
	},
	NewClient: func(addr string) (Client, error) { return newTPClient(addr, "protobuf", tpProtobuf), nil },
}

var tpFunction = System{
	Name:  "tp-func",
	About: "the same, plain functions in the place of the controller",
	Push:  true,
	Serve: func(w *payload.Work) (Server, error) {
		return serveTP(func(peer *tp.Peer) {
			for _, k := range payload.Kinds() {
				tp.HandlePull(peer.PullRouter, k.Path(),
					func(_ tp.PullCtx, m *payload.Message) (*payload.Message, tp.Xerror) {
						w.Handle(k, m)
						return m, nil
					})
			}
			tp.HandlePush(peer.PushRouter, payload.NotePath,
				func(_ tp.PushCtx, m *payload.Message) { w.Note(m) })
		})
	},
	NewClient: tpController.NewClient,
}

var tpJSON = System{
	Name:  "tp-json",
	About: "a controller, JSON bodies",
	Serve: func(w *payload.Work) (Server, error) {
		return serveTP(func(peer *tp.Peer) { peer.PullRouter.Group("json").Reg(&PlainBench{work: w}) })
	},
	NewClient: func(addr string) (Client, error) { return newTPClient(addr, "json", tpPlain), nil },
}

// Bench is the controller of the calls, at /bench.
type Bench struct {
	tp.PullCtx
	work *payload.Work
}

func (b *Bench) Echo(m *payload.Message) (*payload.Message, tp.Xerror) {
	b.work.Handle(payload.Echo, m)
	return m, nil
}

func (b *Bench) Doze(m *payload.Message) (*payload.Message, tp.Xerror) {
	b.work.Handle(payload.Doze, m)
	return m, nil
}

func (b *Bench) Compute(m *payload.Message) (*payload.Message, tp.Xerror) {
	b.work.Handle(payload.Compute, m)
	return m, nil
}

// Note is the controller of what is pushed, at /note.
type Note struct {
	tp.PushCtx
	work *payload.Work
}

func (n *Note) Add(m *payload.Message) { n.work.Note(m) }

// PlainBench is Bench for plain structs, at /json/plain_bench.
type PlainBench struct {
	tp.PullCtx
	work *payload.Work
}

var plainPaths = [...]string{"/json/plain_bench/echo", "/json/plain_bench/doze", "/json/plain_bench/compute"}

func (b *PlainBench) Echo(p *payload.Plain) (*payload.Plain, tp.Xerror) {
	b.work.HandlePlain(payload.Echo, p)
	return p, nil
}

func (b *PlainBench) Doze(p *payload.Plain) (*payload.Plain, tp.Xerror) {
	b.work.HandlePlain(payload.Doze, p)
	return p, nil
}

func (b *PlainBench) Compute(p *payload.Plain) (*payload.Plain, tp.Xerror) {
	b.work.HandlePlain(payload.Compute, p)
	return p, nil
}

// serveTP starts a peer with the routes.
func serveTP(routes func(*tp.Peer)) (Server, error) {
	ln, err := listen()
	if err != nil {
		return nil, err
	}
	peer := tp.NewPeer(nil)
	routes(peer)
	go func() {
		if err := peer.Serve(ln); err != nil {
			tp.Errorf("serve: %v", err)
		}
	}()
	return server{addr: ln.Addr().String(), close: func() { peer.Close() }}, nil
}

// tpClient has one peer for all its sessions.
type tpClient struct {
	peer   *tp.Peer
	addr   string
	caller func(s *tp.Session, k payload.Kind, data []byte) func(id uint64) error
}

func newTPClient(addr, codec string,
	caller func(*tp.Session, payload.Kind, []byte) func(uint64) error) *tpClient {
	return &tpClient{peer: tp.NewPeer(&tp.PeerConfig{DefaultBodyCodec: codec}), addr: addr, caller: caller}
}

func (c *tpClient) Close() { c.peer.Close() }

func (c *tpClient) Dial() (Conn, error) {
	sess, err := c.peer.Dial(c.addr)
	if err != nil {
		return nil, err
	}
	return tpConn{client: c, sess: sess}, nil
}

type tpConn struct {
	client *tpClient
	sess   *tp.Session
}

func (c tpConn) Close() { c.sess.Close() }

func (c tpConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	return c.client.caller(c.sess, k, data), nil
}

func tpProtobuf(sess *tp.Session, k payload.Kind, data []byte) func(uint64) error {
	in, uri := payload.New(data), k.Path()
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Message)
		if cmd := sess.Pull(uri, in, out); cmd.Xerror != nil {
			return cmd.Xerror
		}
		return out.Check(id, len(data))
	}
}

func tpPlain(sess *tp.Session, k payload.Kind, data []byte) func(uint64) error {
	in, uri := payload.NewPlain(data), plainPaths[k]
	return func(id uint64) error {
		in.Stamp(id)
		out := new(payload.Plain)
		if cmd := sess.Pull(uri, in, out); cmd.Xerror != nil {
			return cmd.Xerror
		}
		return out.Check(id, len(data))
	}
}

func (c tpConn) Pusher() func(uint64) error {
	in := payload.New(nil)
	return func(id uint64) error {
		in.Stamp(id)
		// Not "return c.sess.Push(...)": a nil Xerror is not a nil error.
		if x := c.sess.Push(payload.NotePath, in); x != nil {
			return x
		}
		return nil
	}
}

func (c tpConn) Flush() error { return nil }
