// Command bench compares the framework with other RPC systems: the same message,
// the same concurrency, server and client as two processes on this machine. See
// README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/henrylee2cn/teleport/bench/harness"
	"github.com/henrylee2cn/teleport/bench/plan"
	"github.com/henrylee2cn/teleport/bench/report"
	"github.com/henrylee2cn/teleport/bench/systems"
)

func main() {
	harness.RunChild()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// What -short measures, unless other flags say otherwise.
const (
	shortSystems = "tp,floorA,floorB,grpc,netrpc"
	shortWork    = "c1,c16,c128,c1024,64x16,bulk,idle,doze"
)

func run(ctx context.Context, args []string, out, progress io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(progress)
	systemList := flags.String("systems", "",
		"systems to measure: names or regular expressions, separated by commas (all)")
	workList := flags.String("work", "",
		"workloads to run: names or regular expressions, separated by commas (all)")
	rounds := flags.Int("rounds", 5, "how often each system is measured under each workload")
	window := flags.Duration("window", 2*time.Second, "how long each measurement takes")
	warmUp := flags.Duration("warmup", 500*time.Millisecond, "how long the load runs before it")
	short := flags.Bool("short", false, "the main systems and workloads, 3 rounds, in about two minutes")
	jsonFile := flags.String("o", "", "write the results to this file, as JSON")
	svgFile := flags.String("svg", "", "draw calls/s and CPU against callers into this file")
	from := flags.String("from", "", "measure nothing: take the results from this file, written with -o")
	profiles := flags.String("profile", "", "write profiles of the CPU into this directory")
	list := flags.Bool("list", false, "list the systems and the workloads")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *list {
		return writeList(out)
	}
	if *from != "" {
		rep, err := report.ReadFile(*from)
		if err != nil {
			return err
		}
		if err := rep.WriteText(out); err != nil {
			return err
		}
		return draw(rep, *svgFile)
	}

	if *short {
		given := make(map[string]bool)
		flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
		preset(given, "systems", systemList, shortSystems)
		preset(given, "work", workList, shortWork)
		preset(given, "rounds", rounds, 3)
		preset(given, "window", window, 600*time.Millisecond)
		preset(given, "warmup", warmUp, 200*time.Millisecond)
	}
	if *rounds < 1 || *window <= 0 || *warmUp < 0 {
		return fmt.Errorf("-rounds %d, -window %v, -warmup %v: the first two must be positive, the third "+
			"not negative", *rounds, *window, *warmUp)
	}
	o := harness.Options{Rounds: *rounds, WarmUp: *warmUp, Window: *window, Profiles: *profiles,
		Progress: progress}
	if *profiles != "" {
		if err := os.MkdirAll(*profiles, 0o755); err != nil {
			return err
		}
	}
	var err error
	if o.Systems, err = plan.Systems(*systemList); err != nil {
		return err
	}
	if o.Workloads, err = plan.Workloads(*workList); err != nil {
		return err
	}
	first := true
	o.After = func(rep *report.Report) error {
		if first {
			first = false
			fmt.Fprint(out, rep.Head())
		}
		fmt.Fprintf(out, "\n%s", rep.Results[len(rep.Results)-1].Text())
		if *jsonFile == "" {
			return nil
		}
		return rep.WriteFile(*jsonFile) // again and again, in case the run is ended early
	}
	rep, err := harness.Run(ctx, o)
	if err != nil {
		return err
	}
	return draw(rep, *svgFile)
}

// preset changes the value of a flag that was not given.
func preset[T any](given map[string]bool, name string, value *T, to T) {
	if !given[name] {
		*value = to
	}
}

func draw(rep *report.Report, file string) error {
	if file == "" {
		return nil
	}
	return rep.WriteSVG(file)
}

func writeList(out io.Writer) error {
	fmt.Fprintln(out, "systems:")
	for _, s := range systems.All() {
		fmt.Fprintf(out, "  %-8s %s\n", s.Name, s.About)
	}
	fmt.Fprintln(out, "workloads:")
	for _, w := range plan.All() {
		fmt.Fprintf(out, "  %-8s %s\n", w.Name, w.About)
	}
	return nil
}
