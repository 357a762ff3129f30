package tp

import (
	"context"
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
)

// Pull sends a request to one of the servers and waits for the reply, as [Session.Pull] does.
func (c *Cluster) Pull(uri string, args, reply interface{}, setting ...PacketSetting) *PullCmd {
	return c.PullContext(context.Background(), uri, args, reply, setting...)
}

// PullContext is Pull for as long as ctx lasts, as [Session.PullContext] is. All attempts together take no
// longer than ctx, and PeerConfig.DefaultPullTimeout, allow. The command's Session is the one of the last
// attempt. If there was no server it is one that has ended, whose id is "no server".
func (c *Cluster) PullContext(ctx context.Context, uri string, args, reply interface{},
	setting ...PacketSetting) *PullCmd {
	ctx = orNone(ctx)
	cmd := &PullCmd{uri: uri, args: args, reply: reply}
	c.budget.Call()
	a := attempts{c: c, uri: uri}
	hedged := c.option.hedges && c.idempotent(uri, setting)
	for {
		if x := a.next(ctx, c.pullTime(), setting); x != nil {
			a.missed(ctx, cmd, setting, x)
			break
		}
		if hedged {
			cmd = a.pullHedged(ctx, cmd, setting)
		} else {
			a.pull(ctx, cmd, setting)
		}
		if cmd.Xerror == nil || !a.again(ctx, cmd.Xerror, c.idempotent(uri, setting)) {
			break
		}
	}
	a.settle(cmd)
	return cmd
}

// pullTime returns how long a pull may take; 0 is no bound.
func (c *Cluster) pullTime() time.Duration { return max(c.peer.cfg.DefaultPullTimeout, 0) }

// idempotent reports whether the pull may be made again although it may have run.
func (c *Cluster) idempotent(uri string, settings []PacketSetting) bool {
	for i := range settings {
		if settings[i].kind == settingIdempotent {
			return true
		}
	}
	return len(c.option.idempotent) > 0 && anyRoute(c.option.idempotent, routeOf(uri))
}

// pull makes one attempt.
func (a *attempts) pull(ctx context.Context, cmd *PullCmd, settings []PacketSetting) {
	ended := false
	defer func() {
		if !ended { // a hook has called runtime.Goexit
			a.end(balance.Unanswered)
		}
	}()
	pd := a.begin(ctx, cmd)
	cmd.launch(ctx, pd, settings)
	cmd.await(ctx, pd)
	cmd.finish(pd)
	ended = true
	a.over(cmd.Xerror)
}

// missed completes a command for which there is no server. The error of an attempt before says more.
func (a *attempts) missed(ctx context.Context, cmd *PullCmd, settings []PacketSetting, x Xerror) {
	if len(a.tried) > 0 {
		return
	}
	cmd.conn = &a.c.standIn().first
	pd := cmd.newPending(ctx, false)
	cmd.missed(pd, settings, x)
	cmd.finish(pd)
}

// settle makes sure that the error of a call says that it may have run if one of the attempts may have.
func (a *attempts) settle(cmd *PullCmd) {
	if a.unsure != nil && cmd.Xerror != nil && NotRun(cmd.Xerror) {
		cmd.Xerror = a.unsure
	}
}

// GoPull is Pull without the wait, as [Session.GoPull] is. It waits for a server on another goroutine.
func (c *Cluster) GoPull(uri string, args, reply interface{}, done chan *PullCmd,
	setting ...PacketSetting) *PullCmd {
	return c.GoPullContext(context.Background(), uri, args, reply, done, setting...)
}

// GoPullContext is GoPull for as long as ctx lasts.
func (c *Cluster) GoPullContext(ctx context.Context, uri string, args, reply interface{},
	done chan *PullCmd, setting ...PacketSetting) *PullCmd {
	if done == nil {
		done = make(chan *PullCmd, 1)
	}
	c.budget.Call()
	g := &goPull{attempts: attempts{c: c, uri: uri}, ctx: orNone(ctx), settings: setting,
		cmd: &PullCmd{uri: uri, args: args, reply: reply, done: done}}
	if g.choose(c.fleet.choices.Load(), setting) {
		g.launch()
	} else {
		go g.deliver(nil)
	}
	return g.cmd
}

// goPull is a pull by a cluster that nobody waits for.
type goPull struct {
	attempts
	ctx      context.Context
	cmd      *PullCmd
	settings []PacketSetting
}

// launch makes an attempt, at the end of which deliver is called.
func (g *goPull) launch() {
	pd := g.begin(g.ctx, g.cmd)
	pd.command = g
	g.cmd.launch(g.ctx, pd, g.settings)
}

// deliver is called, on a goroutine of its own, when an attempt is over; pd is nil if there was no server for
// the first one. It completes the command, or makes the next attempt.
func (g *goPull) deliver(pd *pending) {
	over := false
	defer func() {
		if over {
			return
		}
		if p := recover(); p != nil {
			g.c.peer.log.panicked(LevelCritical, "pull", "", p)
		}
		g.cmd.Xerror = newXerror(StatusFailedPlugin, "", nil) // a hook has called runtime.Goexit
		g.cmd.done <- g.cmd
	}()
	safe := g.c.idempotent(g.uri, g.settings)
	if pd != nil {
		g.finish(pd)
	}
	if pd == nil || g.again(g.ctx, g.cmd.Xerror, safe) {
		if x := g.next(g.ctx, g.c.pullTime(), g.settings); x == nil {
			over = true
			g.launch()
			return
		} else if pd == nil {
			g.missed(g.ctx, g.cmd, g.settings, x)
		}
	}
	g.settle(g.cmd)
	over = true
	g.cmd.done <- g.cmd
}

// finish ends an attempt, as pull does.
func (g *goPull) finish(pd *pending) {
	ended := false
	defer func() {
		if !ended {
			g.end(balance.Unanswered)
		}
	}()
	g.cmd.finish(pd)
	ended = true
	g.over(g.cmd.Xerror)
}

// Push sends args to one of the servers, as [Session.Push] does. A push that was not sent goes to another
// server.
func (c *Cluster) Push(uri string, args interface{}, setting ...PacketSetting) Xerror {
	return c.PushContext(context.Background(), uri, args, setting...)
}

// PushContext is Push for as long as ctx lasts.
func (c *Cluster) PushContext(ctx context.Context, uri string, args interface{},
	setting ...PacketSetting) Xerror {
	ctx = orNone(ctx)
	a := attempts{c: c, uri: uri, untimed: true}
	return a.each(ctx, setting, func() Xerror { return a.push(ctx, args, setting) })
}

// each makes attempts until one goes well, or no other server is to be tried; what is sent with them must not
// be sent twice.
func (a *attempts) each(ctx context.Context, settings []PacketSetting, attempt func() Xerror) (last Xerror) {
	for {
		if x := a.next(ctx, 0, settings); x != nil {
			if last == nil {
				last = x
			}
			return last
		}
		last = attempt()
		if last == nil || !a.again(ctx, last, false) {
			return last
		}
	}
}

// push makes one attempt.
func (a *attempts) push(ctx context.Context, args interface{}, settings []PacketSetting) Xerror {
	defer a.idle()
	return a.link.sess.first.push(ctx, a.uri, args, settings, true)
}

// openStream opens a stream to one of the servers, where it stays.
func (c *Cluster) openStream(ctx context.Context, uri string, settings []PacketSetting,
	bytes bool) (*streamCore, Xerror) {
	ctx = orNone(ctx)
	a := attempts{c: c, uri: uri, untimed: true}
	var core *streamCore
	x := a.each(ctx, settings, func() (x Xerror) {
		core, x = a.open(ctx, settings, bytes)
		return x
	})
	return core, x
}

// open makes one attempt. The stream counts as a call that is under way until it is over.
func (a *attempts) open(ctx context.Context, settings []PacketSetting, bytes bool) (core *streamCore,
	_ Xerror) {
	defer func() {
		if core == nil {
			a.idle()
		}
	}()
	core, x := a.link.sess.openStream(ctx, a.uri, settings, bytes)
	if x != nil {
		return nil, x
	}
	of := attempts{c: a.c, link: a.link}
	of.link.end.Hold()
	var lives *time.Timer
	if of.c.option.ejects {
		lives = time.AfterFunc(streamLives, func() { of.count(sinceStart(), false) })
	}
	context.AfterFunc(core.life, func() {
		<-core.done
		of.link.end.Release()
		of.idle()
		if lives != nil && lives.Stop() {
			of.ended(core.pull.Xerror)
		}
	})
	return core, nil
}

// streamLives is how long a stream lasts that speaks for its server, however it ends.
const streamLives = time.Second

// ended tells the ejector what a stream that did not last says of its server. Only the server's own word is a
// failure: a connection may be lost for a thousand streams at once.
func (a *attempts) ended(x Xerror) {
	if outcome, counts := outcomeOf(x); counts && !Local(x) {
		a.count(sinceStart(), outcome != balance.OK)
	}
}

// idle ends an attempt whose duration says nothing about the server.
func (a *attempts) idle() { a.link.end.End(sinceStart(), 0, balance.Untimed) }
