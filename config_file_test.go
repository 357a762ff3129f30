package tp

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert/yaml"
	"github.com/stretchr/testify/require"
)

// allSet has another value than zero in each field that can be in a file.
func allSet(t *testing.T) PeerConfig {
	c := PeerConfig{DefaultHeaderCodec: "json", DefaultBodyCodec: "protobuf", DefaultBodyGzipLevel: -2,
		UnixMode: 0o600, Redial: new(Redial)}
	n := int64(1)
	for _, v := range []reflect.Value{reflect.ValueOf(&c).Elem(), reflect.ValueOf(c.Redial).Elem()} {
		for i := range v.NumField() {
			field, name := v.Field(i), v.Type().Field(i).Name
			if slices.Contains(peerConfigForm.ProgramOnly, name) {
				continue
			}
			n++
			switch {
			case !field.IsZero():
			case field.Kind() == reflect.String:
				field.SetString(name)
			case field.Kind() == reflect.Bool:
				field.SetBool(true)
			case field.Kind() == reflect.Slice:
				field.Set(reflect.ValueOf([]string{"127.0.0.1:1", "unix:/a"}))
			case field.Type() == reflect.TypeFor[time.Duration]():
				field.SetInt(n * int64(time.Millisecond) * 700)
			case field.Kind() == reflect.Int || field.Kind() == reflect.Int32: // which may have 32 bits
				field.SetInt(n)
			case field.CanInt():
				field.SetInt(n << (10 * (n % 4)))
			}
			require.False(t, field.IsZero(), name)
		}
	}
	c.MaxSessions, c.MaxBufferedBytes, c.KeepAlive = -1, -1, -1
	return c
}

// Each field comes back as it was, in both languages.
func TestConfigInAFile(t *testing.T) {
	want := allSet(t)
	text, err := json.Marshal(want)
	require.NoError(t, err)
	var got PeerConfig
	require.NoError(t, json.Unmarshal(text, &got), "%s", text)
	require.Equal(t, want, got)
	require.Contains(t, string(text), `"unix_mode":"0600"`)
	require.Contains(t, string(text), `"max_sessions":"none"`)

	// A JSON text is a YAML text too.
	var fromYAML PeerConfig
	require.NoError(t, yaml.Unmarshal(text, &fromYAML))
	require.Equal(t, want, fromYAML)
	plain, err := want.MarshalYAML()
	require.NoError(t, err)
	text, err = json.Marshal(plain)
	require.NoError(t, err)
	got = PeerConfig{}
	require.NoError(t, json.Unmarshal(text, &got))
	require.Equal(t, want, got)

	text, err = json.Marshal(PeerConfig{})
	require.NoError(t, err)
	require.Equal(t, "{}", string(text))
	text, err = json.Marshal(&PeerConfig{DefaultReadTimeout: 3 * time.Minute, ListenAddrs: []string{":1"},
		MaxBodyBytes: 16 << 20, MaxHeaderBytes: 1000, Redial: &Redial{MaxWait: time.Second}})
	require.NoError(t, err)
	require.Equal(t,
		`{"listen_addrs":[":1"],"redial":{"max_wait":"1s"},"default_read_timeout":"3m0s","max_header_bytes":1000,"max_body_bytes":"16MiB"}`, string(text))
	for _, c := range []PeerConfig{{TLSConfig: new(tls.Config)}, {DialContext: func(context.Context, string,
		string) (net.Conn, error) {
		return nil, nil
	}}} {
		_, err := json.Marshal(c)
		require.ErrorContains(t, err, "which a file cannot hold")
		_, err = c.MarshalYAML()
		require.Error(t, err)
	}
}

// What a file does not say stays as the program has it.
func TestConfigFromAFileOverDefaults(t *testing.T) {
	c := PeerConfig{ListenAddrs: []string{":1"}, SlowCometDuration: time.Second, Redial: &Redial{Attempts: 3}}
	r := c.Redial
	require.NoError(t, yaml.Unmarshal([]byte(`
default_read_timeout: 3m
print_body: true
unix_mode: 0640
redial:
  max_wait: none
max_body_bytes: 64 KiB
max_inflated_bytes: 1000
max_decoded_bytes: 2MB
max_handlers: 7
slow_comet_duration: 0
`), &c))
	require.Equal(t, PeerConfig{
		ListenAddrs: []string{":1"}, DefaultReadTimeout: 3 * time.Minute, PrintBody: true,
		UnixMode: os.FileMode(0o640),
		Redial:   &Redial{Attempts: 3, MaxWait: -1}, MaxBodyBytes: 64 << 10, MaxInflatedBytes: 1000,
		MaxDecodedBytes: 2e6, MaxHandlers: 7,
	}, c)
	require.Equal(t, Redial{Attempts: 3}, *r, "the program's own")
	require.NoError(t, json.Unmarshal([]byte(`{"redial": null, "listen_addrs": null, "keep_alive": -1}`), &c))
	require.Nil(t, c.Redial)
	require.Nil(t, c.ListenAddrs)
	require.Equal(t, time.Duration(-1), c.KeepAlive)
}

func TestConfigFileMistakes(t *testing.T) {
	for text, want := range map[string]string{
		`{"ListenAddrs": []}`: "tp: PeerConfig: there is no ListenAddrs; it is called " +
			"listen_addrs",
		`{"listenaddrs": []}`: "tp: PeerConfig: there is no listenaddrs; it is called " +
			"listen_addrs",
		`{"redial": {"maxWait": "1s"}}`: "tp: PeerConfig: there is no redial.maxWait; it is " +
			"called redial.max_wait",
		`{"redial": {"speed": 1}}`: "tp: PeerConfig: there is no redial.speed; there are " +
			"attempts, min_backoff, max_backoff, max_wait, fail_fast, first",
		`{"redial": true}`: "tp: PeerConfig: redial: true is not what is expected, " +
			"an object with the fields of Redial, which may be empty",
		`{"tls_config": {}}`: "tp: PeerConfig: tls_config cannot be set in a file, " +
			"only in a program",
		`{"default_read_timeout": 180000000000}`:  `tp: PeerConfig: default_read_timeout: 180000000000 is not what is expected, a duration such as "1m30s" or "500ms", or "none"`,
		`{"default_read_timeout": "3 minutes"}`:   `tp: PeerConfig: default_read_timeout: "3 minutes" is not what is expected, a duration such as "1m30s" or "500ms", or "none"`,
		`{"max_body_bytes": "16 megabytes"}`:      `tp: PeerConfig: max_body_bytes: "16 megabytes" is not what is expected, a size such as "16MiB" or "64KiB", a number of bytes, or "none"`,
		`{"max_body_bytes": "99999999999GiB"}`:    `tp: PeerConfig: max_body_bytes: "99999999999GiB" is not what is expected, a size such as "16MiB" or "64KiB", a number of bytes, or "none"`,
		`{"max_body_bytes": 1.5}`:                 `tp: PeerConfig: max_body_bytes: 1.5 is not what is expected, a size such as "16MiB" or "64KiB", a number of bytes, or "none"`,
		`{"max_sessions": "many"}`:                `tp: PeerConfig: max_sessions: "many" is not what is expected, a whole number, or "none"`,
		`{"default_body_gzip_level": "none"}`:     `tp: PeerConfig: default_body_gzip_level: "none" is not what is expected, a whole number`,
		`{"default_body_gzip_level": 4294967297}`: `tp: PeerConfig: default_body_gzip_level: 4294967297 is not what is expected, a whole number`,
		`{"listen_addrs": "127.0.0.1:1"}`:         `tp: PeerConfig: listen_addrs: "127.0.0.1:1" is not what is expected, a list of texts such as ["127.0.0.1:9090"]`,
		`{"listen_addrs": [1]}`:                   `tp: PeerConfig: listen_addrs: [1] is not what is expected, a list of texts such as ["127.0.0.1:9090"]`,
		`{"print_body": "yes"}`:                   `tp: PeerConfig: print_body: "yes" is not what is expected, true or false`,
		`{"tls_cert_file": 1}`:                    `tp: PeerConfig: tls_cert_file: 1 is not what is expected, a text`,
		`{"unix_mode": 600}`:                      `tp: PeerConfig: unix_mode: 600 is not what is expected, permissions in octal digits such as "0600"`,
		`{"unix_mode": "rw"}`:                     `tp: PeerConfig: unix_mode: "rw" is not what is expected, permissions in octal digits such as "0600"`,
		`{"default_body_codec": "xml"}`:           `tp: PeerConfig.DefaultBodyCodec: unknown codec: name "xml"`,
		`{"listen_addrs": ["here"]}`:              `tp: PeerConfig.ListenAddrs: address here: missing port in address`,
		`[]`:                                      "tp: PeerConfig: expected an object, and there is array",
	} {
		c := PeerConfig{MaxSessions: 5}
		err := json.Unmarshal([]byte(text), &c)
		require.Error(t, err, text)
		require.Contains(t, err.Error(), want)
		require.Equal(t, PeerConfig{MaxSessions: 5}, c, "nothing is changed")
	}
}
