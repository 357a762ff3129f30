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

	"github.com/henrylee2cn/teleport/internal/handover"
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
		successor := handover.ByPredecessor()
		if how, err := os.ReadFile(os.Getenv("TP_TEST_SUCCESSOR")); err == nil && successor {
			if addr, ok := strings.CutPrefix(string(how), "listen "); ok { // which is taken
				_, err := NewListener(addr)
				Fatalf("%v", err)
			}
			switch string(how) {
			case "close": // what a program does that cannot listen everywhere
				ln, _ := NewListener(strings.Fields(os.Getenv("TP_TEST_ADDRS"))[0])
				_ = ln.Close()
				os.Exit(8)
			case "exit":
				os.Exit(7)
			case "hang":
				_ = os.WriteFile(os.Getenv("TP_TEST_SUCCESSOR")+".pid", fmt.Append(nil, os.Getpid()), 0o600)
				select {}
			case "serve one":
				_, _ = NewListener("127.0.0.1:0")
				select {}
			}
		}
		SetShutdown(-1, nil, nil)
		SetReboot(time.Minute)
		addrs := strings.Fields(os.Getenv("TP_TEST_ADDRS"))
		p := NewPeer(&PeerConfig{ListenAddrs: addrs[:1]})
		HandlePull(p.PullRouter, "/pid", func(PullCtx, *string) (int, Xerror) { return os.Getpid(), nil })
		notes, err := os.OpenFile(os.Getenv("TP_TEST_NOTES"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			Fatalf("%v", err)
		}
		note := func(id string) {
			if _, err := notes.WriteString(id + "\n"); err != nil {
				Fatalf("%v", err)
			}
		}
		HandlePush(p.PushRouter, "/note", func(_ PushCtx, id *string) { note(*id) })
		HandlePull(p.PullRouter, "/call", func(_ PullCtx, id *string) (int, Xerror) {
			note(*id)
			return os.Getpid(), nil
		})
		HandlePull(p.PullRouter, "/exe", func(PullCtx, *string) (string, Xerror) {
			path, _ := os.Executable()
			path, _ = filepath.EvalSymlinks(path)
			return path, nil
		})
		HandlePull(p.PullRouter, "/timeout", func(_ PullCtx, d *time.Duration) (string, Xerror) {
			SetReboot(*d)
			return "", nil
		})
		HandlePull(p.PullRouter, "/reboot", func(PullCtx, *string) (string, Xerror) {
			return fmt.Sprint(reboot()), nil
		})
		go awaitSignals(notifySignals()) // which are caught from here on
		for _, addr := range addrs[1:] {
			ln, err := NewListener(addr)
			if err != nil {
				Fatalf("%v", err)
			}
			go func() { _ = p.Serve(ln) }()
		}
		if !successor {
			go func() {
				for len(p.Addrs()) < len(addrs) {
					runtime.Gosched()
				}
				for _, a := range p.Addrs() {
					if a.Network() == "tcp" {
						fmt.Println(a)
					}
				}
			}()
		}
		_ = p.Listen()
	}
}

type rebooting struct {
	tcp, unix, how, log, notes string
}

func startRebooting(t *testing.T, program ...string) rebooting {
	dir := t.TempDir()
	r := rebooting{
		unix: "unix:" + filepath.Join(dir, "s"), how: filepath.Join(dir, "how"),
		log: filepath.Join(dir, "log"), notes: filepath.Join(dir, "notes"),
	}
	p := prepareProgram(t, "reboot", "TP_TEST_ADDRS="+r.unix+" 127.0.0.1:0", "TP_TEST_NOTES="+r.notes,
		"TP_TEST_SUCCESSOR="+r.how)
	if len(program) > 0 {
		p.cmd.Path, p.cmd.Args = program[0], program
	}
	p.cmd.Stderr = openLog(t, r.log)
	require.NoError(t, p.cmd.Start())
	r.tcp = p.line()
	return r
}

func openLog(t *testing.T, path string) *os.File {
	log, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	t.Cleanup(func() { _ = log.Close() })
	return log
}

func (r rebooting) logText(t *testing.T) string {
	b, err := os.ReadFile(r.log)
	require.NoError(t, err)
	return string(b)
}

// pidOf returns the number of the process that answers. It makes a new connection,
// to a process that may be about to end, and no pull fails.
func pidOf(t *testing.T, cli *Peer, addr string) int {
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	defer sess.Close()
	return pidBy(t, sess)
}

func pidBy(t *testing.T, sess *Session) (pid int) {
	require.Nil(t, sess.Pull("/pid", "", &pid).Xerror)
	return pid
}

var (
	rebootTimes = flag.Int("reboots", 5,
		"how often TestReboot reboots, and TestTerminate starts the program again")
	rebootClients = flag.Int("reboot-clients", 8, "how many clients pull and push meanwhile")
	rebootPause   = flag.Duration("reboot-pause", 0, "what each of them waits between two pulls")
)

// traffic is clients that pull and push all the time, each on a session that redials
// and now and then by a connection of its own.
type traffic struct {
	cli    *Peer
	began  time.Time
	sent   sync.Map // what was pushed
	pulls  atomic.Int64
	ending atomic.Bool
	wg     sync.WaitGroup
}

func startTraffic(t *testing.T, addrs ...string) *traffic {
	tr := &traffic{began: time.Now(), cli: newTestPeer(t, &PeerConfig{Redial: new(Redial)})}
	for i := range *rebootClients {
		addr := addrs[i%len(addrs)]
		sess, err := tr.cli.Dial(addr)
		require.NoError(t, err)
		tr.wg.Go(func() {
			for n := 0; !tr.ending.Load(); n++ {
				by := sess
				if n%10 == 9 {
					if by, err = tr.cli.Dial(addr); err != nil {
						t.Errorf("dial %d: %v", n, err)
						return
					}
				}
				if x := by.Pull("/pid", "", new(int)).Xerror; x != nil {
					t.Errorf("pull %d: %v", n, x)
					return
				}
				tr.pulls.Add(1)
				id := fmt.Sprint(i, "-", n)
				if x := by.Push("/note", id); x != nil {
					t.Errorf("push %s: %v", id, x)
					return
				}
				tr.sent.Store(id, true)
				if by != sess {
					_ = by.Close()
				}
				time.Sleep(*rebootPause)
			}
		})
	}
	return tr
}

// flow waits until every client has pulled some ten times more.
func (tr *traffic) flow(t *testing.T) {
	enough := tr.pulls.Load() + int64(10**rebootClients)
	for tr.pulls.Load() < enough && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
}

func (tr *traffic) stop(t *testing.T) {
	tr.flow(t)
	tr.ending.Store(true)
	tr.wg.Wait()
}

// requireArrived shows that all that was pushed has arrived once, now that the
// servers have ended.
func (tr *traffic) requireArrived(t *testing.T, notes string) {
	text, err := os.ReadFile(notes)
	require.NoError(t, err)
	arrived := map[string]int{}
	for id := range strings.Lines(string(text)) {
		arrived[strings.TrimSpace(id)]++
	}
	lost := 0
	tr.sent.Range(func(id, _ any) bool {
		if arrived[id.(string)] != 1 {
			lost++
			t.Errorf("push %s arrived %d times", id, arrived[id.(string)])
		}
		return lost < 10
	})
}

// Process after process takes over under load, over TCP and a unix socket. No pull
// fails, no dial is refused, and every push that was sent arrives once.
func TestReboot(t *testing.T) {
	prog := startRebooting(t)
	tr := startTraffic(t, prog.tcp, prog.unix)
	seen := map[int]bool{}
	for range *rebootTimes {
		old := pidOf(t, tr.cli, prog.tcp)
		require.False(t, seen[old])
		seen[old] = true
		require.NoError(t, syscall.Kill(old, syscall.SIGUSR2))
		require.Eventually(t, func() bool { return processEnded(old) }, time.Minute, 10*time.Millisecond,
			"it drains and exits")
		require.NotEqual(t, old, pidOf(t, tr.cli, prog.tcp))
		tr.flow(t)
	}
	tr.stop(t)
	t.Logf("%d pulls and as many pushes in %v, %d reboots", tr.pulls.Load(),
		time.Since(tr.began).Round(time.Millisecond), *rebootTimes)
	last := pidOf(t, tr.cli, prog.tcp)
	require.NoError(t, syscall.Kill(last, syscall.SIGTERM))
	require.Eventually(t, func() bool { return processEnded(last) }, time.Minute, 10*time.Millisecond)
	tr.requireArrived(t, prog.notes)
	_, err := os.Stat(strings.TrimPrefix(prog.unix, "unix:"))
	require.ErrorIs(t, err, os.ErrNotExist, "the last one removes the socket")
	_, err = net.Dial("tcp", prog.tcp)
	require.Error(t, err)
	if t.Failed() {
		t.Log(prog.logText(t))
	}
}

// The same where somebody else holds the listening socket, ends the program and
// starts it again: at times before the old one has ended, at times after.
func TestTerminate(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	file, err := ln.(*net.TCPListener).File()
	require.NoError(t, err)
	defer file.Close()
	dir := t.TempDir()
	notes, log := filepath.Join(dir, "notes"), openLog(t, filepath.Join(dir, "log"))
	start := func() *program {
		p := prepareProgram(t, "reboot", "TP_TEST_ADDRS="+ln.Addr().String(), "TP_TEST_NOTES="+notes)
		p.cmd.Path, p.cmd.Args = "/bin/sh", []string{"sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec " +
			os.Args[0]}
		p.cmd.ExtraFiles = []*os.File{file}
		p.cmd.Stderr = log
		require.NoError(t, p.cmd.Start())
		return p
	}
	p := start()
	require.Equal(t, ln.Addr().String(), p.line())
	tr := startTraffic(t, ln.Addr().String())
	for i := range *rebootTimes {
		old := p
		if i%2 == 0 {
			p = start()
			require.Equal(t, ln.Addr().String(), p.line())
		}
		require.NoError(t, old.cmd.Process.Signal(syscall.SIGTERM))
		require.Zero(t, old.exitCode())
		if i%2 == 1 {
			p = start()
		}
		tr.flow(t)
	}
	tr.stop(t)
	t.Logf("%d pulls and as many pushes in %v, %d new starts", tr.pulls.Load(),
		time.Since(tr.began).Round(time.Millisecond), *rebootTimes)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.Zero(t, p.exitCode())
	tr.requireArrived(t, notes)
	if t.Failed() {
		text, _ := os.ReadFile(log.Name())
		t.Log(string(text))
	}
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
			cli := newTestPeer(t, &PeerConfig{Redial: new(Redial)})
			sess, err := cli.Dial(prog.tcp)
			require.NoError(t, err)
			pid := pidBy(t, sess)
			require.Nil(t, sess.Pull("/timeout", 300*time.Millisecond, nil).Xerror)
			if how == "exit" { // which takes as long as it takes
				require.Nil(t, sess.Pull("/timeout", time.Minute, nil).Xerror)
			}
			for range 2 {
				var text string
				require.Nil(t, sess.Pull("/reboot", "", &text).Xerror)
				require.Contains(t, text, want)
			}
			done := make(chan *PullCmd, 2)
			sess.GoPull("/reboot", "", new(string), done)
			sess.GoPull("/reboot", "", new(string), done)
			texts := ""
			for range 2 {
				reply, _ := (<-done).Result()
				texts += *reply.(*string) + "\n"
			}
			if how != "exit" {
				require.Contains(t, texts, "another one is under way")
			}
			for _, addr := range []string{prog.tcp, prog.unix} { // it still accepts
				require.Equal(t, pid, pidOf(t, cli, addr))
			}
			require.Nil(t, sess.Pull("/timeout", time.Minute, nil).Xerror)
			require.NoError(t, os.Remove(prog.how)) // and when the program is mended
			require.NoError(t, syscall.Kill(pid, syscall.SIGUSR2))
			require.Eventually(t, func() bool { return processEnded(pid) }, time.Minute, 10*time.Millisecond)
			require.NotEqual(t, pid, pidBy(t, sess))
		})
	}
}

// A new version that is configured to listen where somebody else does ends, and one
// that cannot be executed does not begin.
func TestRebootToABadProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	text, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(program, text, 0o700))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()

	prog := startRebooting(t, program)
	sess, err := newTestPeer(t, nil).Dial(prog.tcp)
	require.NoError(t, err)
	pid := pidBy(t, sess)
	requireFails := func(want string) {
		var text string
		require.Nil(t, sess.Pull("/reboot", "", &text).Xerror)
		require.Contains(t, text, want)
		require.Equal(t, pid, pidBy(t, sess))
	}
	require.NoError(t, os.WriteFile(prog.how, []byte("listen "+taken.Addr().String()), 0o600))
	requireFails("tp: reboot: the new process ended before it served: exit status 1")
	require.Contains(t, prog.logText(t), "listen tcp "+taken.Addr().String()+": bind: address already in use")
	require.NoError(t, os.WriteFile(prog.how, []byte("close"), 0o600))
	requireFails("tp: reboot: the new process ended before it served: exit status 8")
	require.Equal(t, pid, pidOf(t, newTestPeer(t, nil), prog.unix), "the socket is still there")
	require.NoError(t, os.Chmod(program, 0o600))
	requireFails("tp: reboot: fork/exec " + program + ": permission denied")
	require.NoError(t, os.Remove(program))
	requireFails("tp: reboot: fork/exec " + program + ": no such file or directory")
}

// A process that is to end while its successor starts ends it too.
func TestTerminateDuringAReboot(t *testing.T) {
	prog := startRebooting(t)
	sess, err := newTestPeer(t, nil).Dial(prog.tcp)
	require.NoError(t, err)
	pid := pidBy(t, sess)
	require.NoError(t, os.WriteFile(prog.how, []byte("hang"), 0o600))
	require.NoError(t, syscall.Kill(pid, syscall.SIGUSR2))
	child := 0
	require.Eventually(t, func() bool {
		text, _ := os.ReadFile(prog.how + ".pid")
		_, _ = fmt.Sscan(string(text), &child)
		return child != 0
	}, time.Minute, time.Millisecond)
	require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
	require.Eventually(t, func() bool { return processEnded(pid) }, time.Minute, 10*time.Millisecond)
	require.Eventually(t, func() bool { return processEnded(child) }, time.Minute, 10*time.Millisecond)
	_, err = os.Stat(strings.TrimPrefix(prog.unix, "unix:"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Eventually(t, func() bool { // the last thread of a process may close its files later
		conn, err := net.Dial("tcp", prog.tcp)
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	}, time.Minute, time.Millisecond)
}

// A program that was started by a symbolic connection is started by it again.
func TestRebootThroughALink(t *testing.T) {
	dir := t.TempDir()
	text, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	for _, name := range []string{"one", "two"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o700))
	}
	current := filepath.Join(dir, "current")
	require.NoError(t, os.Symlink("one", current))
	prog := startRebooting(t, current)
	cli := newTestPeer(t, nil)
	require.Equal(t, filepath.Join(dir, "one"), exeOf(t, cli, prog.tcp))
	require.NoError(t, os.Remove(current))
	require.NoError(t, os.Symlink("two", current))
	old := pidOf(t, cli, prog.tcp)
	require.NoError(t, syscall.Kill(old, syscall.SIGUSR2))
	require.Eventually(t, func() bool { return processEnded(old) }, time.Minute, 10*time.Millisecond)
	require.Equal(t, filepath.Join(dir, "two"), exeOf(t, cli, prog.tcp))
}

// exeOf returns the file of the process that answers.
func exeOf(t *testing.T, cli *Peer, addr string) (path string) {
	sess, err := cli.Dial(addr)
	require.NoError(t, err)
	defer sess.Close()
	require.Nil(t, sess.Pull("/exe", "", &path).Xerror)
	return path
}

// A process without a listener has nothing to hand over.
func TestRebootWithoutAListener(t *testing.T) {
	require.ErrorContains(t, Reboot(), "no listener to hand over")
}

// A unix socket that nobody serves any more is no obstacle, and one that somebody
// serves is; other files are left alone.
func TestListenerOnALeftSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	left.SetUnlinkOnClose(false)
	_, err = NewListener("unix:" + path)
	require.ErrorIs(t, err, syscall.EADDRINUSE, "it is served")
	require.NoError(t, left.Close())
	ln, err := NewListener("unix:" + path)
	require.NoError(t, err)
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoError(t, ln.Close())
	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	_, err = NewListener("unix:" + path)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(text))
}

// Under systemd a process takes the sockets that it was started with, says when it
// is ready, and says which process has taken over.
func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"),
		Net: "unixgram"})
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

	p := prepareProgram(t, "systemd", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "TP_TEST_ADDR="+
		ln.Addr().String())
	p.cmd.Path, p.cmd.Args = "/bin/sh", []string{"sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec " + os.Args[0]}
	p.cmd.ExtraFiles = []*os.File{file}
	p.cmd.Stderr = log
	require.NoError(t, p.cmd.Start())
	require.Equal(t, "READY=1", next())
	sess, err := newTestPeer(t, &PeerConfig{Redial: new(Redial)}).Dial(ln.Addr().String())
	require.NoError(t, err)
	old := pidBy(t, sess)
	require.Equal(t, p.cmd.Process.Pid, old)

	require.NoError(t, syscall.Kill(old, syscall.SIGUSR2))
	main := next()
	require.Eventually(t, func() bool { return processEnded(old) }, time.Minute, 10*time.Millisecond)
	require.Equal(t, fmt.Sprintf("MAINPID=%d", pidBy(t, sess)), main)
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
