package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// Show is a chat with people who are programs, while servers and engines go and come back.
type Show struct {
	Where   Where         // of real engines; not needed with Engines
	Engines *Engines      // nil: real ones, which are left in peace
	People  int           // in rooms of ten
	Pause   time.Duration // how long each state lasts
	Out     io.Writer

	began   time.Time
	servers []*Server
	people  []*Person
	backend *Backend
	client  *clientv3.Client
	finder  *Finder
	ledger  *Ledger
	total   metricsSum
	closing []func()
}

const (
	showServers = 3
	roomSize    = 10
	// speakEvery is between two messages of one person, askEvery between two pulls of each of askers.
	speakEvery, askEvery, askers = 250 * time.Millisecond, 20 * time.Millisecond, 4
	// healTime is within what all must be well again.
	healTime = 20 * time.Second
)

// Run runs it. The error says what was not as it should be.
func (s *Show) Run(ctx context.Context) (err error) {
	s.began, s.ledger = time.Now(), NewLedger()
	defer s.close()
	if s.Engines != nil {
		s.Where = s.Engines.Where(s.Where.Service)
	}
	if err = s.start(ctx); err != nil {
		return err
	}
	talk, hush := context.WithCancel(ctx)
	var talking sync.WaitGroup
	for i, p := range s.people {
		talking.Go(func() { s.talk(talk, p, s.room(i)) })
	}
	for range askers {
		talking.Go(func() { s.backend.Run(talk, askEvery) })
	}
	s.sleep(ctx)
	err = s.trouble(ctx)
	s.sleep(ctx)
	hush()
	talking.Wait()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	}
	return s.finish(ctx)
}

// start starts the servers and brings the people in.
func (s *Show) start(ctx context.Context) (err error) {
	s.printf("etcd is at %s, nats at %s", s.Where.Etcd, s.Where.Nats)
	for range showServers {
		if _, err = s.startServer(); err != nil {
			return err
		}
	}
	if s.client, err = clientv3.New(etcd.ClientConfig(split(s.Where.Etcd)...)); err != nil {
		return err
	}
	s.atEnd(func() { _ = s.client.Close() })
	// The list is followed twice, by a finder for the people and by the back end.
	resolver := etcd.NewResolver(s.client, s.Where.Service)
	s.finder = NewFinder(resolver)
	s.atEnd(s.finder.Close)
	s.backend = NewBackend(resolver)
	s.atEnd(s.backend.Close)
	if err = s.until(ctx, "the servers are listed", func() bool { return s.listed() }); err != nil {
		return err
	}
	for i := range s.People {
		if err = s.enter(ctx, fmt.Sprintf("person-%d", i+1), s.room(i)); err != nil {
			return err
		}
	}
	if err = s.presence(ctx); err != nil {
		return err
	}
	return s.everybodyAnswers(ctx)
}

func (s *Show) room(person int) string { return fmt.Sprintf("room-%d", person/roomSize+1) }

// enter brings one person in.
func (s *Show) enter(ctx context.Context, name, room string) error {
	s.ledger.Joined(room, name)
	p, err := Connect(ctx, s.finder, name, Ears{
		Said:   func(m Message) { s.ledger.Heard(name, m) },
		Told:   func(Message) {},
		Missed: func(room string) { s.ledger.Missed(room, name) },
		Asked:  func(string) string { return "yes, says " + name },
	})
	if err != nil {
		return err
	}
	s.people = append(s.people, p)
	s.atEnd(p.Close)
	return p.Join(ctx, room)
}

// presence prints who is in the first room, as the servers know it together.
func (s *Show) presence(ctx context.Context) error {
	all, err := s.people[0].Who(ctx, s.room(0))
	if err != nil {
		return err
	}
	list := all.People
	on := make(map[string]int)
	for _, p := range list {
		on[p.Server]++
	}
	if want := min(s.People, roomSize); len(list) != want {
		return fmt.Errorf("%s has %d members, %v; expected %d", s.room(0), len(list), all, want)
	}
	s.printf("%s has %d people, on %d servers", s.room(0), len(list), len(on))
	return nil
}

// everybodyAnswers has everybody ask the next one, and whisper, wherever that one is connected. Somebody
// whose session is just going on with another server is asked again.
func (s *Show) everybodyAnswers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	began := time.Now()
	for i, p := range s.people {
		next := s.people[(i+1)%len(s.people)]
		var answer string
		var err error
		for {
			if answer, err = p.Ask(ctx, next.Name); err == nil {
				err = p.Tell(ctx, next.Name, "hello")
			}
			if err == nil || ctx.Err() != nil {
				break
			}
			s.printf("  %s has asked %s: %v; asks again", p.Name, next.Name, err)
			wait(ctx, 50*time.Millisecond)
		}
		if err != nil || answer != "yes, says "+next.Name {
			return fmt.Errorf("%s has asked %s: %q, %w", p.Name, next.Name, answer, err)
		}
	}
	s.printf("each of %d people has asked another one, and got the answer: %v", len(s.people),
		time.Since(began).Round(time.Millisecond))
	return nil
}

// talk has a person say something again and again.
func (s *Show) talk(ctx context.Context, p *Person, room string) {
	for n := 1; ; n++ {
		wait(ctx, speakEvery)
		if ctx.Err() != nil {
			return
		}
		m := Message{room, p.Name, fmt.Sprint("message ", n)}
		// Who stops talking ends the sentence.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), healTime)
		err := p.Say(end, room, m.Text)
		cancel()
		s.ledger.Said(m, err == nil)
	}
}

// trouble does to the chat what happens to chats.
func (s *Show) trouble(ctx context.Context) error {
	for _, step := range []struct {
		what  string
		needs bool // engines that can be stopped
		do    func(context.Context) error
	}{
		{"each server is replaced by a new one", false, s.restart},
		{"a server is killed", false, s.kill},
		{"NATS is stopped, and started again", true, s.natsAway},
		{"etcd is stopped, a server starts, and etcd is started again", true, s.etcdAway},
	} {
		if step.needs && s.Engines == nil {
			continue
		}
		before, _, failedBefore := s.backend.Sum()
		began := time.Now()
		s.printf("%s", step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		pulls, _, failed := s.backend.Sum()
		s.printf("  that was %v; the back end made %d pulls, and %d have failed",
			time.Since(began).Round(time.Millisecond), pulls-before, len(failed)-len(failedBefore))
		s.sleep(ctx)
	}
	return nil
}

// restart replaces the servers one after the other.
func (s *Show) restart(ctx context.Context) error {
	for _, old := range slices.Clone(s.servers) {
		s.total.add(old)
		if err := s.stopServer(ctx, old); err != nil {
			return err
		}
		if _, err := s.startServer(); err != nil {
			return err
		}
		if err := s.until(ctx, "the new server is listed", func() bool { return s.listed() }); err != nil {
			return err
		}
		s.sleep(ctx)
	}
	return nil
}

// kill ends a server without a word, and starts another one.
func (s *Show) kill(ctx context.Context) error {
	s.total.add(s.servers[0])
	s.servers[0].Kill()
	s.servers = s.servers[1:]
	s.sleep(ctx)
	_, err := s.startServer()
	return err
}

func (s *Show) natsAway(ctx context.Context) error {
	s.Engines.StopNATS()
	s.sleep(ctx)
	if err := s.Engines.StartNATS(); err != nil {
		return err
	}
	return s.until(ctx, "every server is connected to NATS", func() bool {
		return !slices.ContainsFunc(s.servers, func(one *Server) bool { return !one.hub.Connected() })
	})
}

func (s *Show) etcdAway(ctx context.Context) error {
	var stopping sync.WaitGroup
	stopping.Go(s.Engines.StopEtcd) // which takes some seconds, and nothing is answered any more
	_, err := s.startServer()
	s.sleep(ctx)
	stopping.Wait()
	if err != nil {
		return err
	}
	if err = s.Engines.StartEtcd(); err != nil {
		return err
	}
	return s.until(ctx, "every server is listed, the new one too", func() bool { return s.listed() })
}

// listed reports whether all servers are in the list, as they and the back end know it.
func (s *Show) listed() bool {
	for _, one := range s.servers {
		known := false
		for _, state := range s.backend.cluster.Servers() {
			known = known || state.Id == one.Name && state.Connected
		}
		if !known || !one.listed.Registered() {
			return false
		}
	}
	return true
}

// finish waits for what is under way, and checks all.
func (s *Show) finish(ctx context.Context) error {
	end, cancel := context.WithTimeout(ctx, healTime)
	s.ledger.Await(end)
	cancel()
	if err := s.everybodyAnswers(ctx); err != nil {
		return err
	}
	for _, one := range s.servers {
		s.total.add(one)
	}
	sum := s.ledger.Check()
	s.printf("%d messages were said, and heard %d times", sum.Said, sum.Heard)
	s.printf("  of %d more the speakers do not know whether they were said; %d were", sum.Unknown,
		sum.OfThese)
	s.printf("  %d members were told that messages are missing", sum.Afresh)
	pulls, servers, failed := s.backend.Sum()
	s.printf("%d pulls of the back end were answered by %d servers, %d have failed", pulls, len(servers),
		len(failed))
	s.printf("%s", &s.total)
	var wrong []error
	for _, text := range sum.Wrong {
		wrong = append(wrong, errors.New(text))
	}
	if sum.Said == 0 {
		wrong = append(wrong, errors.New("nothing was said"))
	}
	if wrong = append(wrong, failed...); len(wrong) > 0 {
		n := len(wrong)
		return fmt.Errorf("%d things went wrong: %w", n, errors.Join(wrong[:min(n, 10)]...))
	}
	s.printf("all is well: every member got every message, once and in the same order")
	return nil
}

func (s *Show) startServer() (*Server, error) {
	one, err := StartServer(s.Where, "127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.servers = append(s.servers, one)
	s.atEnd(one.release)
	s.printf("  server %s, %s", one.Name, one.MetricsURL)
	return one, nil
}

func (s *Show) stopServer(ctx context.Context, one *Server) error {
	s.servers = slices.DeleteFunc(s.servers, func(other *Server) bool { return other == one })
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return one.Shutdown(ctx)
}

// until waits until something is so.
func (s *Show) until(ctx context.Context, what string, is func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	began := time.Now()
	for !is() {
		if wait(ctx, 5*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("it is not so after %v that %s", time.Since(began).Round(time.Millisecond),
				what)
		}
	}
	s.printf("  %s, after %v", what, time.Since(began).Round(time.Millisecond))
	return nil
}

func (s *Show) sleep(ctx context.Context) { wait(ctx, s.Pause) }

func (s *Show) atEnd(f func()) { s.closing = append(s.closing, f) }

// close ends people, back end and servers, the last first.
func (s *Show) close() {
	for _, f := range slices.Backward(s.closing) {
		f()
	}
}

func (s *Show) printf(format string, args ...interface{}) {
	at := fmt.Sprintf("%5.1fs  ", time.Since(s.began).Seconds())
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n"+strings.Repeat(" ", len(at)))
	_, _ = fmt.Fprintln(s.Out, at+text)
}
