//go:build unix

package tp

import (
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A signal to reboot that comes before GraceSignal has begun is not lost, nor doubled.
func TestEarlySignalsToReboot(t *testing.T) {
	var e earlySignals
	defer func() { e.take(make(chan os.Signal, 1)) }()
	e.keep()
	e.keep()
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGUSR2))
	for len(e.kept) == 0 {
		syscall.Kill(os.Getpid(), 0) // until it has come
	}
	signals := make(chan os.Signal, 2)
	e.take(signals)
	require.Equal(t, syscall.SIGUSR2, <-signals)
	require.Nil(t, e.kept)
	e.keep()
	require.Nil(t, e.kept, "from now on GraceSignal has them")
	e.take(signals)
	require.Empty(t, signals)

	e = earlySignals{kept: make(chan os.Signal, 1)}
	e.kept <- syscall.SIGUSR2
	signals <- syscall.SIGUSR2
	e.take(signals)
	require.Len(t, signals, 1)
}
