package tptest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/codec"
	"github.com/henrylee2cn/teleport/packet"
)

// Kind is what kind of call it is.
type Kind string

// The kinds of calls.
const (
	Pull   Kind = "pull"
	Push   Kind = "push"
	Stream Kind = "stream"
)

// Call is a call that a [Recorder] has seen: a copy of what was known of it at the time.
type Call struct {
	Kind Kind
	// Path is the URI's path and Query its query. Of a call that came they are what plugins before the
	// recorder have made of them.
	Path  string
	Query url.Values
	// Meta is the metadata that came with the call; nil if there is none.
	Meta map[string]string
	// Session is the session by which the call came or went, at the recorder's side.
	Session *tp.Session
	// Code and Text are the status, as soon as it is known: that of the reply, for a push that came what
	// became of it, and for a call of this side's the error of that. Until then Code is 0.
	Code int32
	Text string
	// Over says that the call is over: a handler has returned, or a pull of this side's has its reply. A
	// push of this side's is over when it is sent.
	Over bool

	body      []byte // with the codec's id in front; empty if there is no body
	gzip      int32  // of body
	bodyError error  // why body is not there
}

// Decode decodes the call's body into v, a pointer, with the codec that the body came with. What is
// decoded is the handler's argument as it was before the handler ran, encoded again: fields that the
// argument does not have are not there. The body of a call that was refused before it was decoded is not
// known. That of an unknown handler's call is known from its reply on, if the handler has decoded it and
// assigned it to the input, see [tp.UnknownPullCtx].
func (c Call) Decode(v any) error {
	if c.bodyError != nil {
		return c.bodyError
	}
	if len(c.body) == 0 {
		return fmt.Errorf("tptest: the %s %s has no body", c.Kind, c.Path)
	}
	if _, err := packet.DecodeBody(c.body, c.gzip, v, packet.Limits{}); err != nil {
		return fmt.Errorf("tptest: the body of the %s %s: %w", c.Kind, c.Path, err)
	}
	return nil
}

// BodyOf returns the call's body as a T, see [Call.Decode].
func BodyOf[T any](c Call) (T, error) {
	var v T
	err := c.Decode(&v)
	return v, err
}

// String is the call for people.
func (c Call) String() string {
	s := string(c.Kind) + " " + c.Path
	if len(c.Query) > 0 {
		s += "?" + c.Query.Encode()
	}
	if len(c.body) > 1 {
		s += fmt.Sprintf(" %.200q", c.body[1:])
	}
	if c.Code != 0 {
		s = strings.TrimSpace(fmt.Sprintf("%s: %d %s", s, c.Code, c.Text))
	}
	return s
}

// A Recorder is a plugin that records the pulls, pushes and streams of its peers: those that come, which
// the methods Assert and Await are about, and those that the peers make. Give it to NewPeer, as the last
// plugin to see what the other plugins let pass. A pull that came is recorded before it is answered, so
// that it is there when its caller has the reply; for a push the test must wait, see
// [Recorder.AwaitPush]. The zero value is ready to use. All methods are safe for concurrent use.
type Recorder struct {
	mu       sync.Mutex // guards the fields below
	received []*recorded
	sent     []*recorded
	open     map[*packet.Packet]*recorded // calls that are not over, by their packets
	changed  chan struct{}                // closed when a call is over; made when somebody waits
}

type recorded struct{ Call }

// Name is the plugin's name.
func (r *Recorder) Name() string { return "tptest recorder" }

// PostReadBody records a call that came and has a route.
func (r *Recorder) PostReadBody(ctx tp.ReadCtx) error {
	if _, came := ctx.(tp.RoutedCtx); !came {
		return nil // the reply to a pull of this side's
	}
	in := ctx.Input()
	if c, ok := callOf(ctx, in); ok {
		if in.BodyLength > 0 {
			c.encode(in)
		}
		r.add(&r.received, in, c)
	}
	return nil
}

// PreWriteReply records the status of a call that came, and the call if it has no route.
func (r *Recorder) PreWriteReply(ctx tp.WriteCtx) error {
	read, ok := ctx.(tp.ReadCtx)
	if !ok || ctx.Output().Header == nil {
		return nil
	}
	h := ctx.Output().Header
	r.change(&r.received, ctx, read.Input(), func(c *Call) { c.Code, c.Text = h.StatusCode, h.Status })
	return nil
}

// PostCall records how a call that came has ended.
func (r *Recorder) PostCall(ctx tp.CallCtx) error {
	code, text := ctx.Status()
	r.change(&r.received, ctx, ctx.Input(), func(c *Call) { c.Code, c.Text, c.Over = code, text, true })
	return nil
}

// PreWritePull records a pull, or a stream, of this side's.
func (r *Recorder) PreWritePull(ctx tp.WriteCtx) error { return r.sends(ctx) }

// PreWritePush records a push of this side's.
func (r *Recorder) PreWritePush(ctx tp.WriteCtx) error { return r.sends(ctx) }

// PostWritePush records that a push of this side's was sent.
func (r *Recorder) PostWritePush(ctx tp.WriteCtx) error {
	r.change(&r.sent, ctx, ctx.Output(), func(c *Call) { c.Code, c.Over = tp.StatusOK, true })
	return nil
}

// PostPull records how a pull of this side's has ended.
func (r *Recorder) PostPull(ctx tp.PullCallCtx) error {
	code, text := tp.StatusOK, ""
	if x := ctx.Failure(); x != nil {
		code, text = x.Code(), x.Text()
	}
	r.change(&r.sent, ctx, ctx.Output(), func(c *Call) { c.Code, c.Text, c.Over = code, text, true })
	return nil
}

func (r *Recorder) sends(ctx tp.WriteCtx) error {
	out := ctx.Output()
	if c, ok := callOf(ctx, out); ok {
		c.encode(out)
		r.add(&r.sent, out, c)
	}
	return nil
}

// callOf makes the record of a packet. It reports false if the packet is no call.
func callOf(ctx tp.Ctx, p *packet.Packet) (Call, bool) {
	h := p.Header
	if h == nil {
		return Call{}, false
	}
	c := Call{Session: ctx.Session(), Meta: maps.Clone(h.Meta)}
	switch h.Type {
	case packet.TypePull:
		c.Kind = Pull
	case packet.TypePush:
		c.Kind = Push
	case packet.TypeOpen:
		c.Kind = Stream
	default:
		return Call{}, false
	}
	path, query, _ := strings.Cut(h.Uri, "?")
	c.Path = path
	c.Query, _ = url.ParseQuery(query)
	return c, true
}

var errBodyUnknown = errors.New("tptest: the body is not known: the call was refused before that, or an " +
	"unknown handler has it, and has not assigned it to the input")

// encode sets the record's body to that of the packet.
func (c *Call) encode(p *packet.Packet) {
	c.body, c.gzip, c.bodyError = nil, 0, nil
	switch body := p.Body.(type) {
	case nil:
		if p.BodyLength > 0 {
			c.bodyError = errBodyUnknown
		}
		return
	case packet.RawBody:
		c.body, c.gzip = slices.Clone(body), p.Header.Gzip
		return
	case *packet.RawBody:
		c.body, c.gzip = slices.Clone(*body), p.Header.Gzip
		return
	}
	name := p.BodyCodec
	if name == "" {
		name = codec.NameJSON
	}
	by, err := codec.GetByName(name)
	if err == nil {
		c.body, err = codec.Append(by, []byte{by.Id()}, p.Body)
	}
	if err != nil {
		c.body, c.bodyError = nil, fmt.Errorf("tptest: the body was not recorded: %w", err)
	}
}

// add adds a call to a list. The packet is the call's, and stays the same for all hooks.
func (r *Recorder) add(list *[]*recorded, p *packet.Packet, c Call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(list, p, c)
}

func (r *Recorder) addLocked(list *[]*recorded, p *packet.Packet, c Call) *recorded {
	if r.open == nil {
		r.open = make(map[*packet.Packet]*recorded)
	}
	rec := &recorded{c}
	r.open[p] = rec
	*list = append(*list, rec)
	return rec
}

// change changes the record of a call, and makes it if there is none.
func (r *Recorder) change(list *[]*recorded, ctx tp.Ctx, p *packet.Packet, change func(c *Call)) {
	c, ok := callOf(ctx, p)
	if ok && r.lacksBody(p) {
		c.encode(p)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.open[p]
	if rec == nil {
		if !ok {
			return
		}
		rec = r.addLocked(list, p, c)
	} else if rec.bodyError == errBodyUnknown {
		rec.body, rec.gzip, rec.bodyError = c.body, c.gzip, c.bodyError
	}
	change(&rec.Call)
	if rec.Over {
		delete(r.open, p)
		if r.changed != nil {
			close(r.changed)
			r.changed = nil
		}
	}
}

// lacksBody reports whether the packet is of a call that is new, or whose body is not known yet.
func (r *Recorder) lacksBody(p *packet.Packet) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.open[p]
	return rec == nil || rec.bodyError == errBodyUnknown
}

// Received returns the calls that have come so far, in the order in which their bodies were decoded.
func (r *Recorder) Received() []Call { return r.calls(&r.received) }

// Sent returns the calls that the recorder's peers have made so far, in their order. With PeerConfig.Redial
// each attempt is one.
func (r *Recorder) Sent() []Call { return r.calls(&r.sent) }

func (r *Recorder) calls(list *[]*recorded) []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := make([]Call, len(*list))
	for i, rec := range *list {
		calls[i] = rec.Call
	}
	return calls
}

// Reset forgets all calls, those that are not over too.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received, r.sent = nil, nil
}

// AwaitPush waits until the nth push to the path, from 1, is over: its handler has returned. It returns
// the call. Where pushes are handled at once, as those of different sessions are, the first is the one
// that was over first. When ctx ends the error says what has come instead, and wraps ctx's.
func (r *Recorder) AwaitPush(ctx context.Context, path string, nth int) (Call, error) {
	return r.await(ctx, Push, path, nth)
}

// AwaitPull is AwaitPush for a pull, which is over when its reply was handed to the connection.
func (r *Recorder) AwaitPull(ctx context.Context, path string, nth int) (Call, error) {
	return r.await(ctx, Pull, path, nth)
}

// AwaitStream is AwaitPull for a stream.
func (r *Recorder) AwaitStream(ctx context.Context, path string, nth int) (Call, error) {
	return r.await(ctx, Stream, path, nth)
}

func (r *Recorder) await(ctx context.Context, kind Kind, path string, nth int) (Call, error) {
	switch {
	case ctx == nil:
		return Call{}, errors.New("tptest: the context is nil; expected t.Context(), or one with a timeout")
	case nth < 1:
		return Call{}, fmt.Errorf("tptest: %s %d of %s is awaited; expected a number from 1", kind, nth, path)
	}
	for {
		c, found, changed := r.find(kind, path, nth)
		if found {
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Call{}, fmt.Errorf("tptest: %s %d of %s is awaited: %w; %s", kind, nth, path, ctx.Err(),
				list(r.Received()))
		}
	}
}

// find returns the nth call that is over, or a channel that is closed when there is another.
func (r *Recorder) find(kind Kind, path string, nth int) (Call, bool, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range r.received {
		if rec.Kind == kind && rec.Path == path && rec.Over {
			if nth--; nth == 0 {
				return rec.Call, true, nil
			}
		}
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return Call{}, false, r.changed
}

// list names the calls.
func list(calls []Call) string {
	if len(calls) == 0 {
		return "no call has come"
	}
	var b strings.Builder
	b.WriteString("these calls have come:")
	for i, c := range calls {
		if i == 20 {
			fmt.Fprintf(&b, "\n\tand %d more", len(calls)-i)
			break
		}
		b.WriteString("\n\t" + c.String())
		if !c.Over {
			b.WriteString(" (not over)")
		}
	}
	return b.String()
}
