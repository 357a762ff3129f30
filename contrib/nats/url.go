package nats

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

var schemes = []string{"nats", "tls", "ws", "wss"}

// checkURLs returns what is wrong with the URLs of brokers, which are separated by commas. A URL may leave
// out the scheme and the port. The client itself would take others too, and try for ever to connect to them.
func checkURLs(urls string) error {
	for one := range strings.SplitSeq(urls, ",") {
		text := strings.TrimSpace(one)
		if !strings.Contains(text, "://") {
			text = "nats://" + text
		}
		u, err := url.Parse(text)
		if err != nil { // whose text may have a password
			return fmt.Errorf("nats: a URL of a broker is none; expected %s", expectedURL)
		}
		port := u.Port()
		n, err := strconv.ParseUint(port, 10, 16)
		if !slices.Contains(schemes, u.Scheme) || u.Hostname() == "" || port != "" && (err != nil || n == 0) {
			return fmt.Errorf("nats: the URL of a broker is %.200q; expected %s", u.Redacted(), expectedURL)
		}
	}
	return nil
}

const expectedURL = "nats://host:port, or several of them with commas between; " +
	"other schemes are tls, ws and wss"

// redacted returns the URLs without passwords.
func redacted(urls string) string {
	all := strings.Split(urls, ",")
	for i, one := range all {
		if u, err := url.Parse(strings.TrimSpace(one)); err == nil {
			all[i] = u.Redacted()
		}
	}
	return strings.Join(all, ",")
}
