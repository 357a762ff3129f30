// Program chat is a chat of many servers: etcd lists them, NATS carries what people on one of them say to
// people on another, and Prometheus counts. docs/chat.md is a walk through it.
//
//	go run .                                            # a show of 15 s, with an etcd and a NATS of its own
//	go run . -engines                                   # an etcd and a NATS for the lines below
//	go run . -server -addr 127.0.0.1:9001 -etcd http://127.0.0.1:2379 -nats nats://127.0.0.1:4222
//	go run . -person ada -etcd http://127.0.0.1:2379
//	go run . -etcd http://127.0.0.1:2379 -nats nats://127.0.0.1:4222     # the show with these
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// options are what the flags say.
type options struct {
	where           Where
	engines, server bool
	addr, metrics   string
	person, room    string
	people          int
	pause           time.Duration
}

func main() {
	tp.SetLogLevel(tp.LevelWarn)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(2)
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

// parse reads the flags.
func parse(args []string, usage io.Writer) (o options, err error) {
	flags := flag.NewFlagSet("chat", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.StringVar(&o.where.Etcd, "etcd", "", "`URLs` of etcd, with commas between")
	flags.StringVar(&o.where.Nats, "nats", "", "`URLs` of NATS with JetStream, with commas between")
	flags.StringVar(&o.where.Service, "service", "chat", "the service's `name`")
	flags.BoolVar(&o.engines, "engines", false, "run an etcd and a NATS, until interrupted")
	flags.BoolVar(&o.server, "server", false, "run a server, until interrupted")
	flags.StringVar(&o.addr, "addr", "127.0.0.1:0", "the server's `address`")
	flags.StringVar(&o.metrics, "metrics", "127.0.0.1:0", "the `address` of the server's page /metrics")
	flags.StringVar(&o.person, "person", "", "chat as the person with this `name`")
	flags.StringVar(&o.room, "room", "lobby", "the `room` that the person begins in")
	flags.IntVar(&o.people, "people", 30, "how many people the show has")
	flags.DurationVar(&o.pause, "pause", time.Second/2, "how long each state of the show lasts")
	if err = flags.Parse(args); err != nil {
		return o, err
	}
	given := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	mode, fits := "the show", []string{"etcd", "nats", "service", "people", "pause"}
	switch {
	case o.engines:
		mode, fits = "-engines", []string{"engines"}
	case o.server:
		mode, fits = "-server", []string{"server", "etcd", "nats", "service", "addr", "metrics"}
	case given["person"]:
		mode, fits = "-person", []string{"person", "room", "etcd", "nats", "service"}
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("%q: only flags were expected", flags.Args())
	}
	for name := range given {
		if !slices.Contains(fits, name) {
			err = errors.Join(err, fmt.Errorf("-%s is not for %s", name, mode))
		}
	}
	if err != nil {
		return o, err
	}
	return o, o.check(mode, given)
}

// check returns what is wrong with the flags' values.
func (o *options) check(mode string, given map[string]bool) error {
	switch {
	case mode == "-server" && !(given["etcd"] && given["nats"]):
		return errors.New("-server needs -etcd and -nats; -engines runs both")
	case mode == "-person" && !given["etcd"]:
		return errors.New("-person needs -etcd, which knows the servers")
	case mode == "the show" && given["etcd"] != given["nats"]:
		return errors.New("-etcd and -nats: both were expected, or none for the show's own")
	case o.people < 2:
		return fmt.Errorf("-people %d: 2 or more were expected", o.people)
	case o.pause <= 0:
		return fmt.Errorf("-pause %v: a time above 0 was expected", o.pause)
	case o.where.Service == "":
		return errors.New("-service is empty")
	}
	if mode == "-person" {
		if err := errors.Join(checkName("name", o.person), checkName("room", o.room)); err != nil {
			return err
		}
	}
	if err := checkURLs("-etcd", o.where.Etcd, "http", "https"); err != nil {
		return err
	}
	return checkURLs("-nats", o.where.Nats, "nats", "tls")
}

// checkURLs returns what is wrong with URLs; there may be none.
func checkURLs(flag, text string, schemes ...string) error {
	for _, one := range split(text) {
		u, err := url.Parse(one)
		if text != "" && (err != nil || !slices.Contains(schemes, u.Scheme) || u.Port() == "") {
			return fmt.Errorf("%s %q: expected %s://host:port, or several with commas between", flag, one,
				strings.Join(schemes, ":// or "))
		}
	}
	return nil
}

// run does what the options say.
func run(ctx context.Context, o options) error {
	switch {
	case o.server:
		return serve(ctx, o)
	case o.person != "":
		client, err := clientv3.New(etcd.ClientConfig(split(o.where.Etcd)...))
		if err != nil {
			return err
		}
		defer client.Close()
		finder := NewFinder(etcd.NewResolver(client, o.where.Service))
		defer finder.Close()
		return Talk(ctx, finder, o.person, o.room, os.Stdin, os.Stdout)
	}
	show := Show{Where: o.where, People: o.people, Pause: o.pause, Out: os.Stdout}
	if o.where.Etcd != "" {
		return runShow(ctx, &show)
	}
	engines, err := StartEngines()
	if err != nil {
		return err
	}
	defer engines.Close()
	if o.engines {
		where := engines.Where(o.where.Service)
		fmt.Printf("-etcd %s -nats %s\n", where.Etcd, where.Nats)
		<-ctx.Done()
		return nil
	}
	show.Engines = engines
	return runShow(ctx, &show)
}

// runShow runs the show, which says itself what happens.
func runShow(ctx context.Context, show *Show) error {
	tp.SetLogLevel(tp.LevelError)
	return show.Run(ctx)
}

// serve runs a server until ctx ends.
func serve(ctx context.Context, o options) error {
	server, err := StartServer(o.where, o.addr, o.metrics)
	if err != nil {
		return err
	}
	fmt.Printf("serving at %s, %s\n", server.Name, server.MetricsURL)
	<-ctx.Done()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return server.Shutdown(end)
}
