package proxy

import (
	"fmt"
	"strconv"

	tp "github.com/henrylee2cn/teleport"
)

// HopsKey is the key of the metadata in which proxies count how often a packet has been
// forwarded, as a decimal number; without it it has not been yet. All other metadata
// passes as it is.
const HopsKey = "tp-hops"

// MaxHops is how many proxies forward a packet, one after the other. The next one takes it
// for one that goes round.
const MaxHops = 16

// maxPairs is how many pairs of metadata a header has room for.
const maxPairs = 256

// nextHop is the setting that counts the packet on. The error is why it is not to be
// forwarded: it has come by too many proxies, or has no room for the count. A count that
// is none of a proxy's making is too many: it could only be there to make a packet go
// round for longer.
func nextHop(ctx tp.UnknownPushCtx) (tp.PacketSetting, tp.Xerror) {
	meta := ctx.Meta()
	said, counted := meta[HopsKey]
	hops := 0
	if counted {
		n, err := strconv.Atoi(said)
		if err != nil || n < 1 || n >= MaxHops || strconv.Itoa(n) != said {
			return tp.PacketSetting{},
				tp.NewXerror(tp.StatusLoopDetected,
					fmt.Sprintf("loop detected: it has come by %d proxies or more", MaxHops))
		}
		hops = n
	} else if len(meta) >= maxPairs {
		return tp.PacketSetting{},
			tp.NewXerror(tp.StatusTooLarge,
				fmt.Sprintf("too large: %d pairs of metadata leave no room for the proxy's %s", len(meta),
					HopsKey))
	}
	return tp.WithMeta(HopsKey, strconv.Itoa(hops+1)), nil
}
