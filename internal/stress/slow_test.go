package stress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/packet"
)

// A packet that trickles in is cut when its time is over, in whatever part of it the
// other side dawdles; a connection that is idle between packets is not.
func TestSlowloris(t *testing.T) {
	alongside(t)
	n := figure(100, 1000)
	pace := figure(50*time.Millisecond, time.Second)
	frameTimeout := figure(time.Second, 5*time.Second)
	srv := start(t, options{Config: tp.PeerConfig{FrameTimeout: frameTimeout}})
	ctl := srv.control(t, options{})
	idle := make([]*tp.Session, 10)
	for i := range idle {
		idle[i] = srv.dial(t, options{}.client())
		require.Nil(t, idle[i].Pull("/echo", 1, nil).Xerror)
	}
	h := &packet.Header{Id: "1", Type: packet.TypePull, Uri: "/echo?" + strings.Repeat("x", 1000)}
	frame := rawFrame(h, []byte("j\""+strings.Repeat("x", 1000)+"\""))
	var longest, bytesSent atomic.Int64
	start := time.Now()
	// All at once: the pace is each connection's own.
	parallel(t, n, n, func(i int) error {
		conn, err := connect(srv.addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		began := time.Now()
		// Half of them dawdle in the header and half in the body.
		rest := frame
		if i%2 == 1 {
			const first = 1100
			if _, err := conn.Write(frame[:first]); err != nil {
				return err
			}
			rest = frame[first:]
		}
		end := make(chan error, 1)
		go func() {
			b, err := readToEnd(conn)
			if len(b) > 0 {
				err = fmt.Errorf("answered with %q", b)
			}
			end <- err
		}()
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			select {
			case err := <-end:
				took := time.Since(began)
				for most := longest.Load(); int64(took) > most && !longest.CompareAndSwap(most,
					int64(took)); most = longest.Load() {
				}
				if took < frameTimeout {
					return fmt.Errorf("cut after %v already", took)
				}
				return err
			case <-tick.C:
				if len(rest) == 0 {
					return errors.New("a frame was sent as a whole")
				}
				if _, err := conn.Write(rest[:1]); err == nil { // else the end says so
					bytesSent.Add(1)
				}
				rest = rest[1:]
			}
		}
	})
	t.Logf("%d connections with a byte every %v, %d bytes: all cut after %v at most, the limit is %v; %v "+
		"in all",
		n, pace, bytesSent.Load(), time.Duration(longest.Load()).Round(time.Millisecond), frameTimeout,
		time.Since(start).Round(time.Millisecond))
	for _, sess := range idle {
		require.Nil(t, sess.Pull("/echo", 1, nil).Xerror, "an idle session was cut")
	}
	ctl.finish()
	for _, sess := range idle {
		_ = sess.Peer().Close()
	}
	srv.requireBaseline(t, 0)
	srv.requireGrowth(t, 64*mib)
}

// Who never reads costs its output's limit at most, whatever goes its way, and is
// closed when the write timeout is over; others are served all the time.
func TestPeerThatNeverReads(t *testing.T) {
	const output = 8 * mib
	for _, c := range []struct {
		name   string
		frames func() []byte
		floods int64
	}{
		{"pushes", func() []byte {
			return rawFrame(&packet.Header{Id: "1", Type: packet.TypePull, Uri: "/flood"},
				fmt.Appendf(nil, `j{"Pushes":%d,"Size":2000}`, figure(10_000, 100_000)))
		}, 1},
		{"pushes of many handlers", func() (b []byte) {
			for range 1000 {
				b = append(b, rawFrame(&packet.Header{Id: "1", Type: packet.TypePull, Uri: "/flood"},
					[]byte(`j{"Pushes":1000,"Size":2000}`))...)
			}
			return b
		}, 1000},
		{"large replies", func() (b []byte) {
			for i := range figure(light(100, 20), 2000) {
				b = append(b, rawFrame(&packet.Header{Id: fmt.Sprint(i), Type: packet.TypePull,
					Uri: "/large"}, []byte("j1000000"))...)
			}
			return b
		}, 0},
		{"large replies without handlers", func() (b []byte) {
			for range figure(20_000, 100_000) {
				b = append(b, rawFrame(&packet.Header{Id: strings.Repeat("i", 1000), Type: packet.TypePull,
					Uri: "/nowhere"}, nil)...)
			}
			return b
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			alongside(t)
			srv := start(t, options{Config: tp.PeerConfig{DefaultWriteTimeout: 2 * time.Second}})
			ctl := srv.control(t, options{})
			conn, err := connect(srv.addr)
			require.NoError(t, err)
			defer conn.Close()
			start := time.Now()
			frames := c.frames()
			require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
			_, err = conn.Write(echoFrame("1"))
			require.NoError(t, err)
			_, _, err = readReply(conn) // the last that is read: it is a session now
			require.NoError(t, err)
			_, err = conn.Write(frames) // fails when it is cut meanwhile
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			got := srv.eventually(t, "the end of the session", func(got stats) bool {
				return got.Sessions == 2 && (got.Floods > 0) == (c.floods > 0) // some may never have begun
			})
			t.Logf("%d frames of %.1f MiB sent, nothing read: session closed after %v, %d pushes handed "+
				"over, %d floods cut",
				strings.Count(string(frames), "/"), inMiB(int64(len(frames))),
				time.Since(start).Round(time.Millisecond), got.Pushed, got.Failed)
			ctl.finish()
			srv.requireBaseline(t, 0)
			srv.requireGrowth(t, output+64*mib)
		})
	}
}

// Connections that say nothing where they should, in the TLS handshake or to a
// PostAccept hook, delay nobody, and are cut when their time is over.
func TestSilentHandshakes(t *testing.T) {
	const timeout = 2 * time.Second
	for name, with := range map[string]func(t *testing.T) options{
		"TLS": func(t *testing.T) options {
			cert, key := certificate(t)
			return options{Config: tp.PeerConfig{TlsCertFile: cert, TlsKeyFile: key,
				HandshakeTimeout: timeout}}
		},
		"PostAccept": func(*testing.T) options {
			return options{Hello: true, Config: tp.PeerConfig{HookTimeout: timeout}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			alongside(t)
			n, good := figure(200, 1000), figure(20, 200)
			o := with(t)
			srv := start(t, o)
			ctl := srv.control(t, o)
			conns := make([]net.Conn, n)
			release := hold(t, srv.addr, n, func(i int, conn net.Conn) error {
				conns[i] = conn
				return nil
			})
			var longest time.Duration
			for range good {
				start := time.Now()
				sess := srv.dial(t, o.client())
				require.Nil(t, sess.Pull("/echo", 1, nil).Xerror)
				longest = max(longest, time.Since(start))
				require.NoError(t, sess.Peer().Close())
			}
			require.Less(t, longest, patience/2)
			start := time.Now()
			parallel(t, n, n, func(i int) error {
				b, err := readToEnd(conns[i])
				if len(b) > 0 {
					return fmt.Errorf("%q was sent", b)
				}
				return err
			})
			t.Logf("beside %d silent connections %d others dialled and pulled in %v at most; the silent "+
				"ones were cut after another %v, the limit is %v",
				n, good, longest.Round(time.Microsecond), time.Since(start).Round(time.Millisecond), timeout)
			release()
			ctl.finish()
			srv.requireBaseline(t, 0)
			srv.requireGrowth(t, 64*mib)
		})
	}
}

// certificate writes a new self-signed certificate and its key to files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:        true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		0o600))
	return cert, key
}

// A session whose last packet came in pieces may then be idle for as long as it
// likes: the time for that packet is over with it.
func TestIdleAfterAPacketInPieces(t *testing.T) {
	alongside(t)
	const idle = 3 * time.Second // several times what follows, and what the reader takes for a lull
	srv := start(t, options{Config: tp.PeerConfig{FrameTimeout: 500 * time.Millisecond}})
	conn, err := connect(srv.addr)
	require.NoError(t, err)
	defer conn.Close()
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for _, b := range echoFrame("1") {
		_, err := conn.Write([]byte{b})
		require.NoError(t, err)
		<-pace.C
	}
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patience)))
	h, _, err := readReply(conn)
	require.NoError(t, err)
	require.Equal(t, tp.StatusOK, h.StatusCode)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(idle)))
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "the idle session was cut")
}
