package nats_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/contrib/nats"
)

// A URL that can lead nowhere is an error, and not a broker that is away for ever.
func TestWrongURLs(t *testing.T) {
	peer := tp.NewPeer(nil)
	defer peer.Close()
	for _, u := range []string{"http://a:4222", "nats://a:99999", " ", "nats://[::", "nats://:4222",
		"nats://a:0", "nats://a:4222,http://b:4222", "nats://a:4222,", "nats://u:s3cret@a:no"} {
		hub, err := nats.New(peer, nats.URL(u))
		require.ErrorContains(t, err, "expected nats://host:port", u)
		require.NotContains(t, err.Error(), "s3cret")
		require.Nil(t, hub)
	}
	for _, u := range []string{"127.0.0.1", "127.0.0.1:1", "nats://[::1]:1, tls://127.0.0.1:1",
		"ws://u:p@127.0.0.1:1"} {
		hub, err := nats.New(peer, nats.URL(u))
		require.NoError(t, err, u)
		hub.Close()
	}
}
