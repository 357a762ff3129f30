package systems

import (
	"context"
	"errors"
	"log"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"github.com/henrylee2cn/teleport/bench/payload"
)

// natsRequest is NATS: the broker with, in the same process, the client of it
// that answers, over loopback TCP too. Every message passes the broker, so a call
// takes four hops where the others take two, and a note two instead of one.
//
// Its limits are raised so that large messages pass and so that no note is
// dropped while the other side falls behind.
var natsRequest = System{
	Name:  "nats",
	About: "NATS request-reply and publish, broker and responder in one process",
	Push:  true,
	Serve: serveNATS,
	NewClient: func(addr string) (Client, error) {
		return dialer(func() (Conn, error) {
			nc, err := nats.Connect("nats://"+addr, nats.NoReconnect(), nats.Timeout(30*time.Second))
			if err != nil {
				return nil, err
			}
			return natsConn{nc}, nil
		}), nil
	},
}

const natsNotes = "note.add"

func natsSubject(k payload.Kind) string { return "bench." + k.String() }

func serveNATS(w *payload.Work) (Server, error) {
	broker, err := natsd.NewServer(&natsd.Options{
		Host:          "127.0.0.1",
		Port:          natsd.RANDOM_PORT,
		NoLog:         true,
		NoSigs:        true,
		MaxPayload:    4 << 20,
		MaxPending:    1 << 30,
		WriteDeadline: time.Minute,
	})
	if err != nil {
		return nil, err
	}
	go broker.Start()
	if !broker.ReadyForConnections(10 * time.Second) {
		return nil, errors.New("nats: the broker does not start")
	}
	nc, err := nats.Connect("nats://"+broker.Addr().String(), nats.NoReconnect())
	if err != nil {
		return nil, err
	}
	for _, k := range payload.Kinds() {
		if _, err := nc.Subscribe(natsSubject(k), natsResponder(w, k)); err != nil {
			return nil, err
		}
	}
	notes, err := nc.Subscribe(natsNotes, func(msg *nats.Msg) {
		m := new(payload.Message)
		if err := proto.Unmarshal(msg.Data, m); err != nil {
			log.Printf("nats: %v", err)
			return
		}
		w.Note(m)
	})
	if err != nil {
		return nil, err
	}
	if err := notes.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	if err := nc.Flush(); err != nil {
		return nil, err
	}
	return server{addr: broker.Addr().String(), close: func() {
		nc.Close()
		broker.Shutdown()
	}}, nil
}

// natsResponder answers on the subscription's goroutine, one call after another,
// as the client library does unless told otherwise.
func natsResponder(w *payload.Work, k payload.Kind) nats.MsgHandler {
	var out []byte // Respond copies it
	return func(msg *nats.Msg) {
		m := new(payload.Message)
		err := proto.Unmarshal(msg.Data, m)
		if err == nil {
			w.Handle(k, m)
			out, err = appendMessage(out[:0], m)
		}
		if err == nil {
			err = msg.Respond(out)
		}
		if err != nil {
			log.Printf("nats: %v", err)
		}
	}
}

type natsConn struct{ nc *nats.Conn }

func (c natsConn) Close() { c.nc.Close() }

func (c natsConn) Caller(k payload.Kind, data []byte) (func(uint64) error, error) {
	in, subject := payload.New(data), natsSubject(k)
	ctx, body := context.Background(), []byte(nil)
	return func(id uint64) error {
		in.Stamp(id)
		var err error
		if body, err = appendMessage(body[:0], in); err != nil {
			return err
		}
		msg, err := c.nc.RequestWithContext(ctx, subject, body)
		if err != nil {
			return err
		}
		out := new(payload.Message)
		if err := proto.Unmarshal(msg.Data, out); err != nil {
			return err
		}
		return out.Check(id, len(data))
	}, nil
}

func (c natsConn) Pusher() func(uint64) error {
	in, body := payload.New(nil), []byte(nil)
	return func(id uint64) error {
		in.Stamp(id)
		var err error
		if body, err = appendMessage(body[:0], in); err != nil {
			return err
		}
		return c.nc.Publish(natsNotes, body)
	}
}

func (c natsConn) Flush() error { return c.nc.FlushTimeout(30 * time.Second) }
