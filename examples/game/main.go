// Program game is a game server with 20 ticks a second, and simulated players in another process, so that the
// server's CPU time is its own. README.md says how it is built.
//
//	go run ./examples/game                        # both, for ten seconds
//	go run ./examples/game -n 200 -for 5s -svg room.svg
//	go run ./examples/game -server -addr :9000    # the server alone
//	go run ./examples/game -players -addr host:9000
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	tp "github.com/henrylee2cn/teleport"
)

func main() {
	var cr Crowd
	onlyServer := flag.Bool("server", false, "run the server alone, until it is interrupted")
	onlyPlayers := flag.Bool("players", false, "run the players alone, with the server at -addr")
	size := flag.Int("room", 10, "players in a room")
	flag.StringVar(&cr.Addr, "addr", "127.0.0.1:0", "the server's address; port 0 takes a free one")
	flag.IntVar(&cr.Players, "n", 1000, "how many players")
	flag.DurationVar(&cr.For, "for", 10*time.Second, "how long they play")
	flag.StringVar(&cr.SVG, "svg", "", "a file for a picture of one room, as one player has seen it")
	flag.Parse()
	tp.SetLogLevel(tp.LevelWarn)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case flag.NArg() > 0:
		err = fmt.Errorf("%q: only flags were expected", flag.Args())
	case *onlyServer && *onlyPlayers:
		err = errors.New("-server and -players: one of them was expected, or none for both processes")
	case cr.Players < 1 || *size < 1 || cr.For <= 0:
		err = fmt.Errorf("-n %d -room %d -for %v: each was expected to be above 0", cr.Players, *size, cr.For)
	case *onlyPlayers:
		err = cr.Run(ctx, os.Stdout)
	case *onlyServer:
		err = serve(ctx, cr.Addr, *size, func(string) error {
			<-ctx.Done()
			return nil
		})
	default:
		err = serve(ctx, cr.Addr, *size, func(addr string) error {
			cr.Addr = addr
			return startPlayers(ctx, cr)
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "game:", err)
		os.Exit(1)
	}
}

// serve has a server listen for as long as f runs.
func serve(ctx context.Context, addr string, size int, f func(addr string) error) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := NewServer(size)
	served := make(chan error, 1)
	go func() { served <- server.peer.Serve(ln) }()
	fmt.Println("the server listens on", ln.Addr())
	err = f(ln.Addr().String())
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(err, server.peer.Shutdown(ending), <-served)
}

// startPlayers runs this program again, for the players, and waits for its end. When ctx ends they are
// interrupted, and say what they have seen until then.
func startPlayers(ctx context.Context, cr Crowd) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "-players", "-addr", cr.Addr, "-n", strconv.Itoa(cr.Players),
		"-for", cr.For.String(), "-svg", cr.SVG)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if runtime.GOOS != "windows" { // where a process can only be killed
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	}
	cmd.WaitDelay = 10 * time.Second
	err = cmd.Run()
	if err == nil || cmd.ProcessState != nil && cmd.ProcessState.Success() {
		return nil // when ctx has ended Run has an error also for a process that ended well
	}
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted before all players were in their rooms (their process: %w)", err)
	}
	return fmt.Errorf("the process of the players: %w", err)
}
