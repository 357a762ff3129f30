//go:build unix

package tp

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The program of these tests serves a listener of its own and one of ListenAddrs,
// and ends with its input at the latest. What TP_TEST_SUCCESSOR's file says happens
// to its successors.
func init() {
	testPrograms["reboot"] = func() {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3)
		}()
		_, successor := os.LookupEnv(envListeners)
		if how, err := os.ReadFile(os.Getenv("TP_TEST_SUCCESSOR")); err == nil && successor {
			switch string(how) {
			case "exit":
				os.Exit(7)
			case "hang":
				select {}
			case "serve one":
				_, _ = NewListener("127.0.0.1:0")
				select {}
			}
		}
		SetShutdown(-1, nil, nil)
		SetReboot(time.Minute)
		p := NewPeer(&PeerConfig{ListenAddrs: []string{"unix:" + os.Getenv("TP_TEST_SOCKET")}})
		HandlePull(p.PullRouter, "/pid", func(PullCtx, *string) (int, Xerror) { return os.Getpid(), nil })
		notes, err := os.OpenFile(os.Getenv("TP_TEST_SOCKET")+".notes", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			Fatalf("%v", err)
		}
		HandlePush(p.PushRouter, "/note", func(_ PushCtx, id *string) {
			if _, err := notes.WriteString(*id + "\n"); err != nil {
				Fatalf("%v", err)
			}
		})
		HandlePull(p.PullRouter, "/timeout", func(_ PullCtx, d *time.Duration) (string, Xerror) { SetReboot(*d); return "", nil })
		HandlePull(p.PullRouter, "/reboot", func(PullCtx, *string) (string, Xerror) { return fmt.Sprint(reboot()), nil })
		ln, err := NewListener("127.0.0.1:0")
		if err != nil {
			Fatalf("%v", err)
		}
		go awaitSignals(notifySignals()) // which are caught from here on
		go func() { _ = p.Serve(ln) }()
		if !successor {
			go func() {
				for len(p.Addrs()) < 2 {
					runtime.Gosched()
				}
				fmt.Println(ln.Addr())
			}()
		}
		_ = p.Listen()
	}
}

type rebooting struct {
	tcp, unix, how, log string
}

func startRebooting(t *testing.T) rebooting {
	dir := t.TempDir()
	r := rebooting{unix: filepath.Join(dir, "s"), how: filepath.Join(dir, "how"), log: filepath.Join(dir, "log")}
	log, err := os.Create(r.log)
	require.NoError(t, err)
	t.Cleanup(func() { _ = log.Close() })
	p := prepareProgram(t, "reboot", "TP_TEST_SOCKET="+r.unix, "TP_TEST_SUCCESSOR="+r.how)
	p.cmd.Stderr = log
	require.NoError(t, p.cmd.Start())
	r.tcp = p.line()
	r.unix = "unix:" + r.unix
	return r
}

func (r rebooting) logText(t *testing.T) string {
	b, err := os.ReadFile(r.log)
	require.NoError(t, err)
	return string(b)
}

// redialler pulls on a connection, and on another when that goes away.
type redialler struct {
	peer *Peer
	addr string
	sess *Session
}

// pid returns the number of the process that answers. The error is that of a pull
// that may have run, or of a dial.
func (r *redialler) pid() (int, error) {
	for {
		if r.sess == nil {
			var err error
			if r.sess, err = r.peer.Dial(r.addr); err != nil {
				return 0, err
			}
		}
		var pid int
		x := r.sess.Pull("/pid", "", &pid).Xerror
		if x == nil {
			return pid, nil
		}
		if !NotRun(x) {
			return 0, x
		}
		r.sess = nil // it ends by itself
	}
}

// note pushes an id until it was sent.
func (r *redialler) note(id string) error {
	for {
		if r.sess == nil {
			var err error
			if r.sess, err = r.peer.Dial(r.addr); err != nil {
				return err
			}
		}
		x := r.sess.Push("/note", id)
		if x == nil {
			return nil
		}
		if !NotRun(x) {
			return x
		}
		r.sess = nil
	}
}

var (
	rebootTimes   = flag.Int("reboots", 5, "how often TestReboot reboots")
	rebootClients = flag.Int("reboot-clients", 8, "how many clients pull and push meanwhile")
	rebootPause   = flag.Duration("reboot-pause", 0, "what each of them waits between two pulls")
)

// Process after process takes over under load, over TCP and a unix socket. No pull
// fails, no dial is refused, and every push that was sent arrives once.
func TestReboot(t *testing.T) {
	reboots, clients := *rebootTimes, *rebootClients
	prog := startRebooting(t)
	cli := newTestPeer(t, nil)
	var now, pulls atomic.Int64 // the process that has answered last
	var sent sync.Map
	var ending atomic.Bool
	var wg sync.WaitGroup
	for i := range clients {
		r := redialler{peer: cli, addr: []string{prog.tcp, prog.unix}[i%2]}
		wg.Go(func() {
			for n := 0; !ending.Load(); n++ {
				pid, err := r.pid()
				if err != nil {
					t.Errorf("pull %d: %v", n, err)
					return
				}
				now.Store(int64(pid))
				pulls.Add(1)
				id := fmt.Sprint(i, "-", n)
				if err := r.note(id); err != nil {
					t.Errorf("push %s: %v", id, err)
					return
				}
				sent.Store(id, true)
				time.Sleep(*rebootPause)
				if n%10 == 9 { // dials too
					_ = r.sess.Close()
					r.sess = nil
				}
			}
		})
	}
	seen := map[int]bool{}
	control := redialler{peer: cli, addr: prog.tcp}
	for range reboots {
		old, err := control.pid()
		require.NoError(t, err)
		require.False(t, seen[old])
		seen[old] = true
		require.NoError(t, syscall.Kill(old, syscall.SIGUSR2))
		for pid := old; pid == old; {
			pid, err = control.pid()
			require.NoError(t, err, "%s", prog.logText(t))
		}
		require.Eventually(t, func() bool { return processEnded(old) }, time.Minute, 10*time.Millisecond, "it drains and exits")
	}
	before := pulls.Load()
	for pulls.Load() < before+100 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	ending.Store(true)
	wg.Wait()
	t.Logf("%d pulls and as many pushes, %d reboots", pulls.Load(), reboots)
	last, err := control.pid()
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(last, syscall.SIGTERM))
	require.Eventually(t, func() bool { return processEnded(last) }, time.Minute, 10*time.Millisecond)
	notes, err := os.ReadFile(prog.unix[len("unix:"):] + ".notes")
	require.NoError(t, err)
	arrived := map[string]int{}
	for id := range strings.Lines(string(notes)) {
		arrived[strings.TrimSpace(id)]++
	}
	sent.Range(func(id, _ any) bool {
		require.Equal(t, 1, arrived[id.(string)], "push %s", id)
		return true
	})
	_, err = os.Stat(prog.unix[len("unix:"):])
	require.ErrorIs(t, err, os.ErrNotExist, "the last one removes the socket")
	_, err = net.Dial("tcp", prog.tcp)
	require.Error(t, err)
}

// processEnded reports whether a process is gone, or would be if its parent looked.
func processEnded(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && len(b) > 0 && containsState(string(b), 'Z')
}

func containsState(stat string, state byte) bool {
	for i := len(stat) - 1; i > 1; i-- {
		if stat[i] == ')' {
			return len(stat) > i+2 && stat[i+2] == state
		}
	}
	return false
}

// A successor that fails in any way leaves the old process serving, which says why.
func TestRebootThatFails(t *testing.T) {
	for how, want := range map[string]string{
		"exit":      "ended before it served: exit status 7",
		"hang":      "did not serve all listeners within 300ms",
		"serve one": "did not serve all listeners within 300ms",
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			prog := startRebooting(t)
			require.NoError(t, os.WriteFile(prog.how, []byte(how), 0o600))
			r := redialler{peer: newTestPeer(t, nil), addr: prog.tcp}
			pid, err := r.pid()
			require.NoError(t, err)
			require.Nil(t, r.sess.Pull("/timeout", 300*time.Millisecond, nil).Xerror)
			if how == "exit" { // which takes as long as it takes
				require.Nil(t, r.sess.Pull("/timeout", time.Minute, nil).Xerror)
			}
			for range 2 {
				var text string
				require.Nil(t, r.sess.Pull("/reboot", "", &text).Xerror)
				require.Contains(t, text, want)
			}
			done := make(chan *PullCmd, 2)
			r.sess.GoPull("/reboot", "", new(string), done)
			r.sess.GoPull("/reboot", "", new(string), done)
			texts := ""
			for range 2 {
				reply, _ := (<-done).Result()
				texts += *reply.(*string) + "\n"
			}
			if how != "exit" {
				require.Contains(t, texts, "another one is under way")
			}
			for _, addr := range []string{prog.tcp, prog.unix} { // it still accepts
				other := redialler{peer: r.peer, addr: addr}
				got, err := other.pid()
				require.NoError(t, err)
				require.Equal(t, pid, got)
			}
			require.Nil(t, r.sess.Pull("/timeout", time.Minute, nil).Xerror)
			require.NoError(t, os.Remove(prog.how)) // and when the program is mended
			require.NoError(t, syscall.Kill(pid, syscall.SIGUSR2))
			for got := pid; got == pid; {
				got, err = r.pid()
				require.NoError(t, err)
			}
		})
	}
}

// A process without a listener has nothing to hand over.
func TestRebootWithoutAListener(t *testing.T) {
	require.ErrorContains(t, Reboot(), "no listener to hand over")
}

// Under systemd a process takes the sockets that it was started with, says when it
// is ready, and says which process has taken over.
func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	require.NoError(t, err)
	defer manager.Close()
	next := func() string {
		require.NoError(t, manager.SetReadDeadline(time.Now().Add(time.Minute)))
		b := make([]byte, 1000)
		n, err := manager.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	require.NoError(t, err)
	defer file.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()

	p := prepareProgram(t, "systemd", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "TP_TEST_ADDR="+ln.Addr().String())
	p.cmd.Path, p.cmd.Args = "/bin/sh", []string{"sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec " + os.Args[0]}
	p.cmd.ExtraFiles = []*os.File{file}
	p.cmd.Stderr = log
	require.NoError(t, p.cmd.Start())
	require.Equal(t, "READY=1", next())
	r := redialler{peer: newTestPeer(t, nil), addr: ln.Addr().String()}
	old, err := r.pid()
	require.NoError(t, err)
	require.Equal(t, p.cmd.Process.Pid, old)

	require.NoError(t, syscall.Kill(old, syscall.SIGUSR2))
	main := next()
	for pid := old; pid == old; {
		pid, err = r.pid()
		require.NoError(t, err)
		if pid != old {
			require.Equal(t, fmt.Sprintf("MAINPID=%d", pid), main)
		}
	}
	require.Zero(t, p.exitCode())
}

func init() {
	testPrograms["systemd"] = func() {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3)
		}()
		SetShutdown(-1, nil, nil)
		p := NewPeer(&PeerConfig{ListenAddrs: []string{os.Getenv("TP_TEST_ADDR")}})
		HandlePull(p.PullRouter, "/pid", func(PullCtx, *string) (int, Xerror) { return os.Getpid(), nil })
		go awaitSignals(notifySignals()) // which are caught from here on
		_ = p.Listen()
	}
}

// A socket of systemd's is that of an address if it could have been made for it.
func TestSameAddr(t *testing.T) {
	tcp := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	for _, c := range []struct {
		have net.Addr
		want string
		same bool
	}{
		{tcp("127.0.0.1", 80), "127.0.0.1:80", true},
		{tcp("127.0.0.1", 80), "127.0.0.1:81", false},
		{tcp("127.0.0.1", 80), "127.0.0.2:80", false},
		{tcp("127.0.0.1", 80), ":80", false},
		{tcp("0.0.0.0", 80), ":80", true},
		{tcp("::", 80), ":80", true},
		{tcp("::", 80), "0.0.0.0:80", true},
		{tcp("::1", 80), "[::1]:80", true},
		{tcp("::", 80), "no such host.:80", false},
		{&net.UnixAddr{Name: "/a/b", Net: "unix"}, "unix:/a/b", true},
		{&net.UnixAddr{Name: "/a/b", Net: "unix"}, "unix:/a/c", false},
		{&net.UnixAddr{Name: "/a/b", Net: "unix"}, "127.0.0.1:80", false},
	} {
		network, address := splitAddr(c.want)
		require.Equal(t, c.same, sameAddr(c.have, network, address), "%v %s", c.have, c.want)
	}
}
