package tp

import (
	"net/url"

	"github.com/henrylee2cn/teleport/internal/uri"
	"github.com/henrylee2cn/teleport/packet"
)

// What hooks and handlers ask of a call, and what they set for its reply.

func (c *call) Uri() string { return c.uri }

func (c *call) Path() string {
	path, _ := uri.Split(c.uri)
	return path
}

func (c *call) Query() url.Values {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.valuesLocked()
	if v.query == nil {
		_, rawQuery := uri.Split(c.uri)
		v.query, _ = url.ParseQuery(rawQuery)
	}
	return v.query
}

// Meta keeps what release would let go.
func (c *call) Meta() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exchange != nil {
		return c.inHdr.Meta
	}
	if c.values == nil {
		return nil
	}
	return c.values.meta
}

func (c *call) SetMeta(key, value string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed {
		return
	}
	if c.outHdr.Meta == nil {
		c.outHdr.Meta = make(map[string]string)
	}
	c.outHdr.Meta[key] = value
}

func (c *call) SetBodyCodec(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sealed {
		c.out.BodyCodec = name
	}
}

func (c *call) SetGzip(level int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sealed {
		c.outHdr.Gzip = level
	}
}

func (c *call) Unmarshal(b []byte, v interface{}, assignToInput ...bool) (string, error) {
	name, cost, err := packet.DecodeCharged(b, c.inHdr.Gzip, v, c.conn.sock.Limits())
	assign := err == nil && len(assignToInput) > 0 && assignToInput[0]
	printed := ""
	if assign && c.conn.peer.packetLog.prints(c.start) {
		printed = printBody(v)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed { // the call's account is closed
		c.conn.inBudget.Give(cost)
		return name, err
	}
	c.unmarshalled += cost
	if assign {
		c.in.Body = v
		if printed != "" {
			c.printed = printed
		}
	}
	return name, err
}
