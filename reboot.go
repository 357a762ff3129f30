package tp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/internal/errno"
)

// A process that reboots starts a successor, the same program with the same
// arguments, and hands it its listening sockets. The successor says on a pipe that
// it serves all of them; then the old process drains and exits. Until then, and if
// the successor fails, the old one goes on serving. As the sockets are the same, no
// connection that the kernel has taken is lost.

// defaultRebootTimeout holds until SetReboot is called.
const defaultRebootTimeout = 30 * time.Second

const (
	// envListeners has the addresses of the listeners that were handed over, as
	// they were asked for, one a line; their files begin at firstFile.
	envListeners = "TELEPORT_LISTENERS"
	// envReady is the number of the pipe's file.
	envReady  = "TELEPORT_READY"
	firstFile = 3
)

// ErrRebootUnsupported is what errors.Is finds in the error of Reboot on Windows,
// where listening sockets cannot be handed over.
var ErrRebootUnsupported = errors.New("tp: reboot: not supported on this system")

// reboots is the process's part in reboots, as successor and as predecessor.
var reboots = struct {
	// making has one place, for who makes a listener, and inherited and read are theirs.
	// inherited are the listeners that this process was handed over and has not asked for
	// yet.
	making    chan struct{}
	inherited []*sharedListener
	read      bool

	mu      sync.Mutex // guards the fields below
	timeout time.Duration
	under   bool // a reboot is under way
	// own are the listeners of NewListener, to be handed over.
	own []*sharedListener
	// ready is where to say that all that this process was handed over is served; nil if
	// nobody waits for that.
	ready   *os.File
	waiting int         // inherited ones that nobody serves yet
	told    bool        // systemd, that this process serves
	child   *os.Process // the successor, until it serves
	ending  bool        // Shutdown has begun
}{timeout: defaultRebootTimeout, making: make(chan struct{}, 1)}

// handed is what this process was started with. It is taken out of the environment,
// and its files are kept from programs that this one starts.
var handed = func() (h struct {
	addrs    string // of the listeners of a predecessor, one a line
	ready    int    // the file of the pipe
	byReboot bool
	bySystem int // the number of systemd's listeners
	err      error
}) {
	files := 0
	if h.addrs, h.byReboot = os.LookupEnv(envListeners); h.byReboot {
		if h.ready, h.err = strconv.Atoi(os.Getenv(envReady)); h.err != nil {
			h.err = fmt.Errorf("tp: reboot: %s: %w", envReady, h.err)
		}
		files = strings.Count(h.addrs, "\n") + 2
		_ = os.Unsetenv(envListeners)
		_ = os.Unsetenv(envReady)
	} else if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err == nil && pid == os.Getpid() { // sd_listen_fds(3)
		if h.bySystem, h.err = strconv.Atoi(os.Getenv("LISTEN_FDS")); h.err != nil {
			h.err = fmt.Errorf("tp: LISTEN_FDS: %w", h.err)
		}
		files = h.bySystem
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(name)
		}
	}
	for i := range files {
		closeOnExec(firstFile + i)
	}
	return h
}()

// unlinker is a net.UnixListener, where there are any.
type unlinker interface{ SetUnlinkOnClose(unlink bool) }

// sharedListener is a listener that outlives the process.
type sharedListener struct {
	net.Listener
	addr   string    // as it was asked for
	first  sync.Once // call of Accept
	served bool      // guarded by reboots.mu
	isOurs bool      // was handed over by a predecessor that waits
}

// SetReboot says how long [Reboot] waits for the new process to serve; without it
// 30 s.
func SetReboot(timeout time.Duration) {
	reboots.mu.Lock()
	defer reboots.mu.Unlock()
	reboots.timeout = timeout
}

// NewListener listens on "host:port", or "unix:/path". If the process was started
// by [Reboot], or by systemd with sockets, and was handed a listener for this
// address, it takes that. A unix socket that a process has left that was killed is
// removed. [Peer.Listen] uses it; a listener for [Peer.Serve] that
// is to survive a reboot is made by it. It is safe for concurrent use.
func NewListener(addr string) (net.Listener, error) { return newListener(addr, 0) }

// newListener is NewListener for unix sockets with a mode, if it is not zero.
func newListener(addr string, mode os.FileMode) (net.Listener, error) {
	// Others that make listeners wait, as two must not take one address from each other.
	// Nobody else does: what is done here may take time.
	reboots.making <- struct{}{}
	defer func() { <-reboots.making }()
	if err := inherit(); err != nil {
		return nil, err
	}
	network, address := splitAddr(addr)
	l := takeInherited(network, addr, address)
	if l == nil {
		ln, err := listen(network, address, mode)
		if errors.Is(err, errno.InUse) && removeLeftSocket(network, address) {
			ln, err = listen(network, address, mode)
		}
		if err != nil {
			return nil, fmt.Errorf("tp: %w", err)
		}
		l = &sharedListener{Listener: ln, addr: addr}
	}
	reboots.mu.Lock()
	defer reboots.mu.Unlock()
	reboots.own = append(reboots.own, l)
	return l, nil
}

func listen(network, address string, mode os.FileMode) (net.Listener, error) {
	if network != "unix" || mode == 0 {
		return net.Listen(network, address)
	}
	return listenUnix(address, mode)
}

// removeLeftSocket removes a unix socket that nobody listens on: whoever made it has
// been killed. It reports whether it did.
func removeLeftSocket(network, path string) bool {
	info, err := os.Lstat(path)
	if network != "unix" || err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	conn, err := net.Dial(network, path)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, errno.Refused) && os.Remove(path) == nil
}

// takeInherited returns the listener that was handed over for the address.
func takeInherited(network, addr, address string) *sharedListener {
	for i, l := range reboots.inherited {
		if l.addr == addr || l.addr == "" && sameAddr(l.Addr(), network, address) {
			reboots.inherited = slices.Delete(reboots.inherited, i, i+1)
			l.addr = addr
			return l
		}
	}
	return nil
}

// sameAddr reports whether a listener of systemd's is what was asked for.
func sameAddr(a net.Addr, network, address string) bool {
	if a.Network() != network {
		return false
	}
	if network == "unix" {
		return a.String() == address
	}
	want, err := net.ResolveTCPAddr(network, address)
	got, ok := a.(*net.TCPAddr)
	if err != nil || !ok || want.Port != got.Port {
		return false
	}
	return want.IP.Equal(got.IP) || (want.IP == nil || want.IP.IsUnspecified()) && (got.IP == nil || got.IP.IsUnspecified())
}

// Close forgets the listener, which ends for this process.
func (l *sharedListener) Close() error {
	reboots.mu.Lock()
	if i := slices.Index(reboots.own, l); i >= 0 {
		reboots.own = slices.Delete(reboots.own, i, i+1)
	}
	reboots.mu.Unlock()
	return l.Listener.Close()
}

// Accept says, the first time, that the listener is served.
func (l *sharedListener) Accept() (net.Conn, error) {
	l.first.Do(l.nowServed)
	return l.Listener.Accept()
}

func (l *sharedListener) nowServed() {
	early.keep()
	taken, ready := l.countServed()
	for _, u := range taken {
		u.SetUnlinkOnClose(true) // from now on it is this process's
	}
	if ready != nil {
		_, _ = ready.Write([]byte{'R'})
		_ = ready.Close()
		logf(LevelInfo, "took over from the process before", "took over from the process before")
	}
}

// countServed returns what is to be done when all listeners are served that a predecessor has
// handed over: the unix sockets that are this process's now, and the pipe to say so on.
func (l *sharedListener) countServed() (taken []unlinker, ready *os.File) {
	reboots.mu.Lock()
	defer reboots.mu.Unlock()
	l.served = true
	if !slices.ContainsFunc(reboots.own, func(l *sharedListener) bool { return !l.served }) && !reboots.told && !handed.byReboot {
		reboots.told = true
		go notifySystemd("READY=1")
	}
	if !l.isOurs {
		return nil, nil
	}
	if reboots.waiting--; reboots.waiting > 0 || reboots.ready == nil {
		return nil, nil
	}
	for _, l := range reboots.own {
		if u, ok := l.Listener.(unlinker); ok && l.isOurs {
			taken = append(taken, u)
		}
	}
	ready, reboots.ready = reboots.ready, nil
	return taken, ready
}

// endSuccessor ends a successor that does not serve yet, and the time of reboots.
func endSuccessor() {
	reboots.mu.Lock()
	reboots.ending = true
	child := reboots.child
	reboots.mu.Unlock()
	if child != nil {
		_ = child.Kill()
	}
}

// Reboot starts the program anew, with the same arguments, directory and
// environment, and hands the new process the listeners of [Peer.Listen] and
// [NewListener]. When that serves them all this process drains, as [Shutdown] does,
// and exits; until then both serve. It returns only an error, and then the process
// goes on as before: if the new one cannot be started, ends, or does not serve
// within the time of [SetReboot], in which case it is killed, as it is when the process
// shuts down before that. There is one reboot at a time. A handler that calls Reboot
// waits for itself: start it with go. On Windows the error is [ErrRebootUnsupported].
//
// A service manager that is systemd is told the new process's number.
func Reboot() error {
	err := reboot()
	if err != nil {
		logf(LevelError, "reboot failed", "%v", errAttr(err))
		return err
	}
	Shutdown()
	return nil
}

func reboot() error {
	reboots.mu.Lock()
	if reboots.ending {
		reboots.mu.Unlock()
		return errors.New("tp: reboot: the process is shutting down")
	}
	if reboots.under {
		reboots.mu.Unlock()
		return errors.New("tp: reboot: another one is under way")
	}
	reboots.under = true
	own, timeout := slices.Clone(reboots.own), reboots.timeout
	reboots.mu.Unlock()
	pid, err := startSuccessor(own, timeout)
	if err != nil {
		reboots.mu.Lock()
		reboots.under = false
		reboots.mu.Unlock()
		return fmt.Errorf("tp: reboot: %w", err)
	}
	logf(LevelInfo, "another process has taken over", "process %d has taken over", slog.Int("pid", pid))
	for _, l := range own {
		if u, ok := l.Listener.(unlinker); ok {
			u.SetUnlinkOnClose(false) // it is the successor's now
		}
	}
	notifySystemd(fmt.Sprintf("MAINPID=%d", pid))
	return nil
}

// inherit takes what the process was started with, the first time.
func inherit() error {
	if handed.err != nil || reboots.read {
		return handed.err
	}
	reboots.read = true
	if !handed.byReboot {
		for i := range handed.bySystem {
			if err := inheritFile(firstFile+i, ""); err != nil {
				return err
			}
		}
		return nil
	}
	for i, addr := range strings.Split(handed.addrs, "\n") {
		if err := inheritFile(firstFile+i, addr); err != nil {
			return err
		}
	}
	reboots.mu.Lock()
	defer reboots.mu.Unlock()
	reboots.ready = os.NewFile(uintptr(handed.ready), "ready")
	reboots.waiting = len(reboots.inherited)
	return nil
}

func inheritFile(fd int, addr string) error {
	f := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("tp: file %d, which should be a listening socket: %w", fd, err)
	}
	if u, ok := ln.(unlinker); ok {
		u.SetUnlinkOnClose(false) // it is another's, at least for now
	}
	reboots.inherited = append(reboots.inherited, &sharedListener{Listener: ln, addr: addr, isOurs: addr != ""})
	return nil
}

// notifySystemd tells the service manager, if there is one, about this process,
// see sd_notify(3).
func notifySystemd(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.Dial("unixgram", path)
	if err != nil {
		logf(LevelWarn, "systemd cannot be told", "systemd cannot be told %s: %v", slog.String("state", state), errAttr(err))
		return
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		logf(LevelWarn, "systemd cannot be told", "systemd cannot be told %s: %v", slog.String("state", state), errAttr(err))
	}
}
