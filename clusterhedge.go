package tp

import (
	"context"
	"time"

	"github.com/henrylee2cn/teleport/internal/balance"
	"github.com/henrylee2cn/teleport/internal/quantile"
)

// hedgeQuantile is the part of a route's pulls that take no longer than Hedge(0) waits.
const hedgeQuantile = 0.95

// shot is one of the two attempts of a hedged pull.
type shot struct {
	attempts
	cmd  *PullCmd
	pd   *pending
	done bool // pd is complete
	gone bool // the attempt is over
}

// fire makes the attempt, and does not wait for its end.
func (s *shot) fire(ctx context.Context, settings []PacketSetting) {
	s.pd = s.begin(ctx, s.cmd)
	s.cmd.launch(ctx, s.pd, settings)
}

// abandon completes the shot, if it is not complete, with the end of ctx.
func (s *shot) abandon(ctx context.Context) {
	if !s.done {
		s.cmd.conn.abandonPull(ctx, s.cmd.number)
		<-s.pd.ended
		s.done = true
	}
}

// answered reports whether what has come of the shot is the pull's result: a reply, or an error that another
// server would answer with too.
func (s *shot) answered() bool {
	if s.pd.failure != nil {
		return false
	}
	reply := s.pd.replied()
	if reply == nil || reply.header.StatusCode == StatusOK {
		return true
	}
	outcome, _ := outcomeOf(repliedStatus(&reply.header))
	return outcome == balance.OK
}

// finish ends the shot, which is complete.
func (s *shot) finish() {
	s.cmd.finish(s.pd)
	s.gone = true
	s.over(s.cmd.Xerror)
}

// drop ends the shot, whose context has ended. Its reply is not decoded, nor its metadata kept.
func (s *shot) drop(ctx context.Context) {
	lost := !s.done
	s.abandon(ctx)
	s.cmd.reply, s.pd.meta = nil, nil
	if !lost {
		s.finish()
		return
	}
	s.cmd.finish(s.pd)
	s.gone = true
	s.end(balance.Unanswered)
}

// pullHedged makes an attempt, and after some time a second one by another command if the first one is not
// over. It returns the command that has the result.
func (a *attempts) pullHedged(ctx context.Context, cmd *PullCmd, settings []PacketSetting) *PullCmd {
	times := a.c.times.of(routeOf(a.uri))
	both, cancel := context.WithCancel(ctx)
	first, second := &shot{attempts: *a, cmd: cmd}, (*shot)(nil)
	defer func() {
		cancel()
		for _, s := range []*shot{first, second} {
			if s != nil && !s.gone { // a hook has called runtime.Goexit
				s.end(balance.Unanswered)
			}
		}
	}()
	first.fire(both, settings)
	if first.due(ctx, times) {
		second = a.second(both, cmd, settings)
	}
	result := first
	if second == nil {
		first.wait(ctx)
	} else {
		result = first.race(ctx, second)
	}
	times.Add(sinceStart() - first.began)
	if second == nil {
		first.finish()
		return cmd
	}
	other := second
	if result == second {
		other = first
	}
	cancel()
	other.drop(both)
	result.finish()
	a.link = result.link
	if x := other.cmd.Xerror; x != nil && !NotRun(x) {
		a.unsure = x
	}
	if other.lost() {
		a.tried = append(a.tried, other.link.sess)
	}
	return result.cmd
}

// lost reports whether the server of a shot that is over is none for another attempt.
func (s *shot) lost() bool {
	x := s.cmd.Xerror
	return x != nil && x.Code() != StatusCanceled
}

// due waits until it is time for a second attempt, and reports false if the first one is complete before
// that, or if it is not known when that is.
func (s *shot) due(ctx context.Context, times *quantile.Sketch) bool {
	after, known := s.c.option.hedge, true
	if after == 0 {
		after, known = times.Of(hedgeQuantile)
	}
	if !known {
		return false
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-s.pd.ended:
		s.done = true
		return false
	case <-timer.C:
		return true
	case <-ctx.Done():
		s.abandon(ctx)
		return false
	}
}

// wait waits until the shot is complete, which it is with the end of ctx.
func (s *shot) wait(ctx context.Context) {
	if s.done {
		return
	}
	select {
	case <-s.pd.ended:
		s.done = true
	case <-ctx.Done():
		s.abandon(ctx)
	}
}

// second makes the second attempt, which does not wait for a place. It returns nil if there is no other
// server or no budget for it.
func (a *attempts) second(ctx context.Context, cmd *PullCmd, settings []PacketSetting) *shot {
	now := a.c.fleet.choices.Load()
	if len(now.links) < 2 || !a.c.budget.Take(sinceStart()) {
		return nil
	}
	s := &shot{attempts: *a, cmd: &PullCmd{uri: cmd.uri, args: cmd.args, reply: cmd.reply}}
	s.attempts.late = true
	s.tried = append(a.tried[:len(a.tried):len(a.tried)], a.link.sess)
	if !s.choose(now, settings) {
		return nil
	}
	s.fire(ctx, joined(settings, []PacketSetting{WithFailFast()}))
	return s
}

// race waits until one of the two shots is answered, or neither is any more, and returns the one that has the
// result.
func (first *shot) race(ctx context.Context, second *shot) *shot {
	one := first
	select {
	case <-first.pd.ended:
		first.done = true
	case <-second.pd.ended:
		second.done = true
		one = second
	case <-ctx.Done():
		first.abandon(ctx)
		return first
	}
	if one.answered() {
		return one
	}
	other := second
	if one == second {
		other = first
	}
	other.wait(ctx)
	if other.answered() || one == second {
		return other
	}
	return one
}
