// Program fanout measures what one message to many connections costs the server: time of its processors and
// memory. The members are in another process, which counts what it receives; a round is over when every
// member has every message. The systems take turns. Printed are medians of the rounds, and multiples of a
// floor, which is a bare loop of writes.
//
//	go run ./fanout
//	go run ./fanout -stalled
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/report"
	"github.com/henrylee2cn/teleport/internal/sockopt"
)

func main() {
	runChild()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(2)
		}
		fmt.Fprintln(os.Stderr, err)
		stop()
		os.Exit(1)
	}
}

// The processes have some files open beside those of the members.
const otherFiles = 100

// run is the program. What went wrong with a system is in its table, and an error too.
func run(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := flag.NewFlagSet("fanout", flag.ContinueOnError)
	flags.SetOutput(progress)
	names := flags.String("systems", "", "names or regular expressions, separated by commas; empty for all")
	members := flags.String("members", "", "numbers of members, separated by commas; empty for 2000,10000,"+
		" and for 2000 with -stalled")
	rounds := flags.Int("rounds", 5, "how often each system is measured")
	deliveries := flags.Int("deliveries", 40_000, "how many deliveries a round of a system has at least")
	client := flags.String("client", "raw", "what the members of tp are: raw for bare connections, which"+
		" take all they get; tp for sessions of a peer")
	beside := flags.Bool("stalled", false, "measure how long messages take when one member does not read")
	file := flags.String("o", "", "write everything into this file, as JSON")
	patience := flags.Duration("patience", 30*time.Second, "how long the members wait for a message")
	list := flags.Bool("list", false, "print the names of the systems")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *list {
		for _, s := range allSystems() {
			fmt.Fprintf(out, "%-12s %s\n", s.Name, s.About)
		}
		return nil
	}
	o := options{rounds: *rounds, deliveries: *deliveries, patience: *patience, withTP: *client == "tp",
		progress: progress}
	if *members == "" {
		*members = "2000,10000"
		if *beside {
			*members = "2000"
		}
	}
	var err error
	if o.systems, err = plan.Select("system", *names, allSystems(), func(s system) string {
		return s.Name
	}); err != nil {
		return err
	}
	if o.members, err = numbers(*members); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("the argument %q, where there are none but flags", flags.Arg(0))
	case *rounds < 1:
		return fmt.Errorf("-rounds %d, where 1 is the least", *rounds)
	case *deliveries < 1:
		return fmt.Errorf("-deliveries %d, where 1 is the least", *deliveries)
	case *patience <= 0:
		return fmt.Errorf("-patience %v, where it has to be more than 0", *patience)
	case *client != "raw" && *client != "tp":
		return fmt.Errorf("-client %q, where raw or tp was expected", *client)
	case *beside && o.withTP:
		return errors.New("-stalled with -client tp, but a session of a peer always reads")
	}
	f := &findings{Machine: report.ThisMachine(), Client: *client}
	fmt.Fprint(out, f.Machine)
	for _, n := range o.members {
		var text string
		var failed error
		if *beside {
			res, err := o.measureStalled(ctx, n)
			f.Stalled, failed = append(f.Stalled, res), err
			text = res.text()
		} else {
			res, err := o.measure(ctx, n)
			f.Results, failed = append(f.Results, res), err
			text = res.text()
		}
		fmt.Fprint(out, text)
		if *file != "" { // again and again, in case the run is ended early
			failed = errors.Join(failed, f.writeFile(*file))
		}
		if failed != nil {
			return failed
		}
	}
	return f.failure()
}

// failure is an error if anything has failed.
func (f *findings) failure() error {
	var all []error
	note := func(name, err string) {
		if err != "" {
			all = append(all, fmt.Errorf("%s: %s", name, err))
		}
	}
	for _, r := range f.Results {
		for _, s := range r.Systems {
			note(s.Name, s.Err)
		}
	}
	for _, r := range f.Stalled {
		for _, s := range r.Systems {
			note(s.Name, s.Err)
		}
	}
	return errors.Join(all...)
}

// numbers parses numbers of members.
func numbers(list string) ([]int, error) {
	most := min(sockopt.MaxOpenFiles()-otherFiles, mostMembers)
	var all []int
	for item := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(item)
		if err != nil || n < 2 {
			return nil, fmt.Errorf("-members %q, where a number of at least 2 was expected", item)
		}
		if n > most {
			return nil, fmt.Errorf("-members %d, but a process can have %d at most: it may open %d files", n,
				most, sockopt.MaxOpenFiles())
		}
		all = append(all, n)
	}
	return all, nil
}
