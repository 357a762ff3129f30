package tp

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"sync"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/bufpool"
	"github.com/henrylee2cn/teleport/packet"
)

// PullCmd is one pull and what came of it. Once it is complete only PostWritePull
// hooks that still run may change it.
type PullCmd struct {
	// Xerror is nil if the pull succeeded. Otherwise its code is the status that
	// the other side answered with, or one below 200 if there was no answer.
	Xerror Xerror

	ctx   packetCtx // of the packet sent and of the reply
	id    uint64
	reply interface{}
	body  *bufpool.Buffer // the reply's raw body until it is decoded
	done  chan *PullCmd   // GoPull delivers on it; nil for Pull,
	wait  sync.WaitGroup  // which waits here
}

func newPullCmd(s *Session, uri string, args, reply interface{}, settings []PacketSetting) *PullCmd {
	cmd := &PullCmd{reply: reply}
	c := &cmd.ctx
	c.sess = s
	c.in.Header = &c.inHdr
	c.setOutput(packet.TypePull, uri, args, settings)
	c.start = s.peer.startTime()
	return cmd
}

// Session returns the session that the pull was made on.
func (cmd *PullCmd) Session() *Session { return cmd.ctx.sess }

// Output returns the packet that was sent.
func (cmd *PullCmd) Output() *packet.Packet { return &cmd.ctx.out }

// Input returns the reply; its header is empty if there was none.
func (cmd *PullCmd) Input() *packet.Packet { return &cmd.ctx.in }

// Result returns what was given to Pull as reply, and Xerror.
func (cmd *PullCmd) Result() (interface{}, Xerror) { return cmd.reply, cmd.Xerror }

// Public returns the values that the hooks of this pull and of its reply share.
func (cmd *PullCmd) Public() goutil.Map { return cmd.ctx.Public() }

// Done returns the channel that GoPull delivers the command on; nil after Pull.
func (cmd *PullCmd) Done() <-chan *PullCmd { return cmd.done }

// launch sends the pull. Whatever happens, the command is settled once.
func (cmd *PullCmd) launch() {
	c := &cmd.ctx
	s := c.sess
	chain := s.peer.chain
	cmd.id = s.pulls.newId()
	id := formatPullId(cmd.id)
	c.outHdr.Id = id
	if err := chain.preWritePull.run(c); err != nil {
		cmd.settle(err.xerror())
		return
	}
	c.fixOutput(id, packet.TypePull)
	frame, err := s.sock.Encode(&c.out)
	if err != nil {
		cmd.settle(sendXerror(err))
		return
	}
	// From here on a reply may come: whoever takes the entry out of the table
	// settles the command.
	if !s.pulls.add(cmd) {
		frame.Drop()
		cmd.settle(newXerror(StatusConnClosed, "connection closed, the pull was not sent", nil))
		return
	}
	if s.peer.refusesPulls() {
		frame.Drop()
		if s.takePull(cmd.id) != nil {
			cmd.settle(newXerror(StatusServiceUnavailable, "this peer is shutting down, the pull was not sent", nil))
		}
		return
	}
	if err := s.writeFrame(frame); err != nil {
		if s.takePull(cmd.id) != nil {
			cmd.settle(sendXerror(err))
		}
		return
	}
	if err := chain.postWritePull.run(c); err != nil {
		Warnf("pull %s: %v", quote(c.outHdr.Uri), err)
	}
}

// settle completes the command: with an error, or with the reply in cmd.ctx.in
// and cmd.body. Only whoever owns the command may call it, once.
func (cmd *PullCmd) settle(x Xerror) {
	cmd.Xerror = x
	if cmd.done == nil {
		cmd.wait.Done()
		return
	}
	go func() {
		finished := false
		defer func() {
			if finished {
				return
			}
			// A hook has called runtime.Goexit, or something here has panicked.
			if p := recover(); p != nil {
				Criticalf("reply of %s: panic: %v\n%s", quote(cmd.ctx.outHdr.Uri), p, debug.Stack())
			}
			cmd.Xerror = newXerror(StatusFailedPlugin, "", nil)
			cmd.done <- cmd
		}()
		cmd.finish()
		finished = true
		cmd.done <- cmd
	}()
}

// finish does the part of completing that belongs on the waiting goroutine:
// decoding.
func (cmd *PullCmd) finish() {
	if cmd.Xerror == nil {
		cmd.Xerror = cmd.readReply()
	}
	bufpool.Put(cmd.body)
	cmd.body = nil
	cmd.logPulled()
}

func (cmd *PullCmd) readReply() Xerror {
	c := &cmd.ctx
	if c.inHdr.StatusCode != StatusOK {
		return NewXerror(c.inHdr.StatusCode, c.inHdr.Status)
	}
	chain := c.sess.peer.chain
	if err := chain.preReadBody.run(c); err != nil {
		return err.xerror()
	}
	if x := c.decode(cmd.body.B, cmd.reply); x != nil {
		return x
	}
	c.in.Body = cmd.reply
	c.printed = c.printInput(cmd.reply)
	if err := chain.postReadBody.run(c); err != nil {
		return err.xerror()
	}
	return nil
}

// pullTable holds the pulls in flight on one session. Taking an entry out is
// owning the command.
type pullTable struct {
	mu     sync.Mutex // guards the fields below
	last   uint64
	byId   map[uint64]*PullCmd
	closed bool
}

func (t *pullTable) newId() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	return t.last
}

// add enters the command under its id; false means that the session has ended.
func (t *pullTable) add(cmd *PullCmd) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.byId == nil {
		t.byId = make(map[uint64]*PullCmd)
	}
	t.byId[cmd.id] = cmd
	return true
}

// take removes and returns the command with the id, nil if there is none.
func (t *pullTable) take(id uint64) *PullCmd {
	t.mu.Lock()
	defer t.mu.Unlock()
	cmd := t.byId[id]
	delete(t.byId, id)
	return cmd
}

func (t *pullTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byId)
}

// close refuses newcomers from now on and returns what was in flight.
func (t *pullTable) close() []*PullCmd {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	cmds := make([]*PullCmd, 0, len(t.byId))
	for _, cmd := range t.byId {
		cmds = append(cmds, cmd)
	}
	t.byId = nil
	return cmds
}

// formatPullId and parsePullId turn a pull's number into its id on the wire and
// back. No two ids are the same number.
func formatPullId(n uint64) string { return strconv.FormatUint(n, 10) }

func parsePullId(id string) (uint64, bool) {
	if id == "" || id[0] == '0' || id[0] == '+' {
		return 0, false
	}
	n, err := strconv.ParseUint(id, 10, 64)
	return n, err == nil
}

// sendXerror is why a packet could not be sent.
func sendXerror(err error) Xerror {
	if errors.Is(err, errSocketClosed) {
		return newXerror(StatusConnClosed, "connection closed, the packet was not sent", err)
	}
	return newXerror(StatusWriteFailed, fmt.Sprintf("write failed: %v", err), err)
}
