package tp

import (
	"log/slog"
	"net"
	"time"

	"github.com/henrylee2cn/teleport/internal/handover"
)

// ErrRebootUnsupported is what errors.Is finds in the error of Reboot on Windows,
// where listening sockets cannot be handed over.
var ErrRebootUnsupported = handover.ErrUnsupported

// SetReboot says how long [Reboot] waits for the new process to serve; without it
// 30 s.
func SetReboot(timeout time.Duration) { handover.SetTimeout(timeout) }

// NewListener listens on "host:port", or "unix:/path". If the process was started
// by [Reboot], or by systemd with sockets, and was handed a listener for this
// address, it takes that. A unix socket that a process has left that was killed is
// removed. [Peer.Listen] uses it; a listener for [Peer.Serve] that
// is to survive a reboot is made by it. It is safe for concurrent use.
func NewListener(addr string) (net.Listener, error) {
	network, address := splitAddr(addr)
	return handover.Listen(network, address, addr, 0)
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

// reboot is Reboot without the end of this process.
func reboot() error {
	pid, err := handover.Start()
	if err == nil {
		logf(LevelInfo, "another process has taken over", "process %d has taken over", slog.Int("pid", pid))
	}
	return err
}
