package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

// Crowd is a number of simulated players in one process, and what they are to do.
type Crowd struct {
	Addr    string        // of the server
	Players int           // how many
	For     time.Duration // how long they play
	SVG     string        // a file for a picture of one room; "" for none
}

// Run has the players dial, enter and play, and writes what was measured. When ctx ends they stop early. An
// error says that not all of them could play to the end.
func (cr Crowd) Run(ctx context.Context, out io.Writer) error {
	peer, meter := NewPlayerPeer(), new(Meter)
	defer peer.Close()
	clients, err := cr.enter(ctx, peer, meter)
	if err != nil {
		return err
	}
	// The figures are of the time between two looks at the server's CPU time.
	before, err := usage(ctx, clients[0].sess)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d players are in their rooms\n", cr.Players)
	meter.begin(time.Now())
	playing, cancel := context.WithTimeout(ctx, cr.For)
	defer cancel()
	lost := each(cr.Players, func(i int) error { return clients[i].Play(playing) })
	took := meter.end()
	after, err := usage(ctx, clients[0].sess)
	if err != nil {
		return errors.Join(lost, err)
	}
	report(out, meter, took, after, after.CPU-before.CPU)
	if cr.SVG != "" {
		lost = errors.Join(lost, writePicture(cr.SVG, clients[0].View()))
	}
	return lost
}

// enter brings all players into their rooms. One who cannot enter is enough to give up. Not too many dial at
// a time: a server lets only so many strangers from one address be in their handshakes at once.
func (cr Crowd) enter(outer context.Context, peer *tp.Peer, meter *Meter) ([]*Client, error) {
	ctx, cancel := context.WithTimeout(outer, 30*time.Second)
	defer cancel()
	clients := make([]*Client, cr.Players)
	dialling := make(chan struct{}, 64)
	err := each(cr.Players, func(i int) error {
		dialling <- struct{}{}
		sess, err := peer.DialContext(ctx, cr.Addr)
		<-dialling
		if err == nil {
			clients[i] = NewClient(nameOf(i), sess, meter, cr.SVG != "" && i == 0)
			err = clients[i].Enter(ctx)
		}
		if err != nil {
			cancel()
		}
		return err
	})
	if outer.Err() != nil {
		return nil, errors.New("interrupted before all players were in their rooms")
	}
	return clients, err
}

// usage asks the server what it costs, also if ctx has ended.
func usage(ctx context.Context, sess *tp.Session) (Load, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	load, err := Usage.Call(ctx, sess, struct{}{})
	if err != nil {
		return load, fmt.Errorf("asking the server for its CPU time: %w", err)
	}
	return load, nil
}

// each calls f for 0 to n-1, all at once. It returns the first error, and says how many there are.
func each(n int, f func(i int) error) error {
	var all sync.WaitGroup
	var failed atomic.Int64
	first := make(chan error, 1)
	for i := range n {
		all.Go(func() {
			if err := f(i); err != nil {
				failed.Add(1)
				select {
				case first <- err:
				default:
				}
			}
		})
	}
	all.Wait()
	if failed := failed.Load(); failed > 0 {
		return fmt.Errorf("%d of %d players have failed, the first: %w", failed, n, <-first)
	}
	return nil
}

// report writes what was measured: load is what the server had to do, and cpu what it took.
func report(out io.Writer, m *Meter, took time.Duration, load Load, cpu time.Duration) {
	seconds := took.Seconds()
	fmt.Fprintf(out, "%d players in %d rooms, %d ticks a second, for %.1f s\n", load.Players, load.Rooms,
		time.Second/tick, seconds)
	if load.CPU == 0 {
		fmt.Fprintln(out, "server:    its CPU time is not measured on this system")
	} else {
		fmt.Fprintf(out, "server:    %.1f%% of a core, %.2f ms of CPU time for each player and second\n",
			100*cpu.Seconds()/seconds, 1000*cpu.Seconds()/seconds/float64(max(1, load.Players)))
	}
	positions, lines := m.positions.Load(), m.lines.Load()
	fmt.Fprintf(out, "delivered: %d positions and %d lines of chat, %.0f pushes a second\n", positions, lines,
		float64(positions+lines)/seconds)
	fmt.Fprintf(out, "chat:      %d lines lost or out of order\n", m.disorder.Load())
	fmt.Fprintf(out, "positions: p50 %v, p99 %v from the tick's push to the player's handler\n",
		m.quantile(0.5), m.quantile(0.99))
}

func writePicture(file string, v View) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(v.Draw(f), f.Close())
}

// Meter counts what the players of a process receive from begin to end.
type Meter struct {
	from                       atomic.Int64 // Unix nanoseconds; what was pushed before does not count
	positions, lines, disorder atomic.Int64
	delays                     [200_000]atomic.Uint32 // of positions, by step; the last one for all above
}

const step = 10 * time.Microsecond

func (m *Meter) begin(now time.Time) { m.from.Store(now.UnixNano()) }

// end returns the time since begin.
func (m *Meter) end() time.Duration {
	return time.Duration(time.Now().UnixNano() - m.from.Swap(math.MaxInt64))
}

// counts reports whether a push of that time is to be counted.
func (m *Meter) counts(at int64) bool {
	from := m.from.Load()
	return from > 0 && at >= from
}

func (m *Meter) position(at int64) {
	if m.counts(at) {
		m.positions.Add(1)
		took := max(0, time.Now().UnixNano()-at) / int64(step)
		m.delays[min(took, int64(len(m.delays)-1))].Add(1)
	}
}

func (m *Meter) line(at int64, inOrder bool) {
	if m.counts(at) {
		m.lines.Add(1)
	}
	if !inOrder {
		m.disorder.Add(1)
	}
}

// quantile returns the time that the part q of the positions did not exceed.
func (m *Meter) quantile(q float64) time.Duration {
	want := int64(math.Ceil(q * float64(m.positions.Load())))
	for i := range m.delays {
		if want -= int64(m.delays[i].Load()); want <= 0 {
			return time.Duration(i) * step
		}
	}
	return time.Duration(len(m.delays)) * step
}

// nameOf returns the name of the ith player. A thousand of them are different without a number.
func nameOf(i int) string {
	name := manners[i%len(manners)] + " " + animals[i/len(manners)%len(animals)]
	if round := i / len(manners) / len(animals); round > 0 {
		name = fmt.Sprint(name, " ", round+1)
	}
	return name
}

var (
	manners = strings.Fields("calm bold quick shy wise loud brave sly merry grim keen lazy proud odd glad " +
		"stern swift tiny vast warm cool dark fair mild neat pale rare soft tall wild young kind")
	animals = strings.Fields("otter heron badger lynx raven hare owl fox stoat crane toad wren bear deer " +
		"eel finch goat hawk ibis jay kite lark mole newt pike quail robin seal tern vole wolf yak")
)
