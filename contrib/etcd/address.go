package etcd

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// advertised returns the address, or the addresses with commas between them, at which others reach a server
// that listens on addrs. Hosts are what the program wants to be known by: each a host, which gets the ports
// that the server listens on, or a host:port, which is taken as it is. Without hosts the addresses of the
// listeners are taken; a listener on all addresses of the machine has the one that myHost returns. Addresses
// that are good on this machine only are left out if there are others. It is empty if addrs is.
func advertised(addrs []net.Addr, hosts []string, myHost func() string) string {
	var far, near []string // near are those for this machine only
	add := func(addr string, isNear bool) {
		list := &far
		if isNear {
			list = &near
		}
		if !slices.Contains(*list, addr) {
			*list = append(*list, addr)
		}
	}
	addrs = slices.SortedFunc(slices.Values(addrs), func(a, b net.Addr) int { // they come in no set order
		return strings.Compare(a.String(), b.String())
	})
	for _, a := range addrs {
		tcp, ok := a.(*net.TCPAddr)
		if !ok {
			if a.Network() == "unix" {
				add("unix:"+a.String(), true)
			} else {
				add(a.String(), false)
			}
			continue
		}
		port := fmt.Sprint(tcp.Port)
		switch {
		case len(hosts) > 0:
			for _, h := range hosts {
				if !hasPort(h) {
					h = net.JoinHostPort(strings.Trim(h, "[]"), port)
				}
				add(h, false)
			}
		case tcp.IP == nil || tcp.IP.IsUnspecified():
			add(net.JoinHostPort(myHost(), port), false)
		default:
			add(tcp.String(), tcp.IP.IsLoopback())
		}
	}
	if len(far) == 0 {
		far = near
	}
	return strings.Join(far, ",")
}

func hasPort(host string) bool {
	if strings.HasPrefix(host, "unix:") {
		return true
	}
	_, _, err := net.SplitHostPort(host)
	return err == nil
}

// myHost returns the address of this machine by which others are likely to reach it: the one from which it
// reaches etcd, or else the rest of the world, or else the first of its interfaces; 127.0.0.1 if it has no
// other. Nothing is sent and no name looked up: connecting a UDP socket only asks the system for its route.
func myHost(endpoints []string) string {
	var towards []string
	for _, e := range endpoints {
		if _, rest, ok := strings.Cut(e, "://"); ok {
			e = rest
		}
		host, _, err := net.SplitHostPort(e)
		if err != nil {
			host = e
		}
		if ip, err := netip.ParseAddr(host); err == nil && !ip.IsLoopback() && !ip.IsUnspecified() {
			towards = append(towards, ip.String())
		}
	}
	// Addresses for documentation, by RFC 5737 and RFC 3849: no machine has them.
	towards = append(towards, "192.0.2.1", "2001:db8::1")
	for _, to := range towards {
		conn, err := net.Dial("udp", net.JoinHostPort(to, "9"))
		if err != nil {
			continue
		}
		from := conn.LocalAddr().(*net.UDPAddr).IP
		_ = conn.Close()
		if from.IsGlobalUnicast() {
			return from.String()
		}
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	return "127.0.0.1"
}
