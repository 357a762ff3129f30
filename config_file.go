package tp

import (
	"errors"
	"fmt"

	"github.com/henrylee2cn/goutil"

	"github.com/henrylee2cn/teleport/internal/configfile"
)

// A PeerConfig in a file has the names of its fields in snake case.
var peerConfigForm = configfile.Form{
	Name:        goutil.SnakeString,
	ProgramOnly: []string{"TLSConfig", "DialContext"},
}

// MarshalJSON writes the configuration for a file: the fields that are not zero, their names
// in snake case as in "default_read_timeout", durations as "3m0s", sizes as "16MiB", modes as
// "0600", and "none" for no bound. An error says that it has a TLSConfig or a DialContext,
// which a file cannot hold.
func (c PeerConfig) MarshalJSON() ([]byte, error) {
	values, err := c.fileValues()
	if err != nil {
		return nil, err
	}
	return values.MarshalJSON()
}

// MarshalYAML is MarshalJSON for YAML, as the packages go.yaml.in/yaml, gopkg.in/yaml and
// goccy/go-yaml call it.
func (c PeerConfig) MarshalYAML() (interface{}, error) {
	values, err := c.fileValues()
	if err != nil {
		return nil, err
	}
	return values.Map(), nil
}

// UnmarshalJSON reads what MarshalJSON writes. Fields that the text does not have are left as
// they are. A name that no field has, a value of another kind or one that NewPeer would not
// take is an error that names it, and then nothing is changed.
func (c *PeerConfig) UnmarshalJSON(text []byte) error {
	values, err := configfile.DecodeJSON(text)
	if err != nil {
		return fmt.Errorf("tp: PeerConfig: %w", err)
	}
	return c.readFile(values)
}

// UnmarshalYAML is UnmarshalJSON for YAML, as the packages go.yaml.in/yaml, gopkg.in/yaml and
// goccy/go-yaml call it.
func (c *PeerConfig) UnmarshalYAML(unmarshal func(interface{}) error) error {
	var values map[string]interface{}
	if err := unmarshal(&values); err != nil {
		return err
	}
	return c.readFile(values)
}

func (c *PeerConfig) readFile(values map[string]interface{}) error {
	next := *c
	if c.Redial != nil {
		r := *c.Redial
		next.Redial = &r
	}
	if err := peerConfigForm.Read(&next, values); err != nil {
		return fmt.Errorf("tp: PeerConfig: %w", err)
	}
	if err := next.problem(); err != nil {
		return err
	}
	*c = next
	return nil
}

func (c *PeerConfig) fileValues() (configfile.Object, error) {
	switch {
	case c.TLSConfig != nil:
		return nil, errors.New("tp: PeerConfig: TLSConfig is set, which a file cannot hold; TlsCertFile " +
			"and TlsKeyFile can be there")
	case c.DialContext != nil:
		return nil, errors.New("tp: PeerConfig: DialContext is set, which a file cannot hold")
	}
	return peerConfigForm.Write(c), nil
}
