package docs

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Names of functions as package runtime spells them. A point in the last part of a path is escaped there.
func TestSplitFunc(t *testing.T) {
	for _, tc := range []struct{ name, pkg, symbol string }{
		{"main.main", "main", "main"},
		{"example.com/shop.(*Cart).Add", "example.com/shop", "Cart.Add"},
		{"example.com/shop.Cart.Add-fm", "example.com/shop", "Cart.Add"},
		{"example.com/shop.(*Cart).Add-fm", "example.com/shop", "Cart.Add"},
		{"example.com/shop.New.func1", "example.com/shop", "New.func1"},
		{"gopkg.in/shop%2ev3.add", "gopkg.in/shop.v3", "add"},
		{"example.com/a.b/shop.add[...]", "example.com/a.b/shop", "add"},
		{"example.com/shop.(*Page[...]).Turn", "example.com/shop", "Page.Turn"},
		{"example.com/shop.Page[example.com/x/y.Z].Turn", "example.com/shop", "Page.Turn"},
		{"", "", ""},
	} {
		pkg, symbol := splitFunc(tc.name)
		require.Equal(t, [2]string{tc.pkg, tc.symbol}, [2]string{pkg, symbol}, tc.name)
	}
}
