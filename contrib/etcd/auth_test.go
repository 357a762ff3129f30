package etcd_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/henrylee2cn/teleport/contrib/etcd"
)

// as returns a client of a user, whose password is the name.
func (c *cluster) as(user string) *clientv3.Client {
	c.t.Helper()
	cfg := etcd.ClientConfig(c.members[0].clients.addr())
	cfg.Username, cfg.Password = user, user
	return connect(c.t, cfg)
}

// protect has etcd ask for passwords. The user orders may read and write the keys of this package, and the
// user guest may do nothing.
func (c *cluster) protect() {
	c.t.Helper()
	admin, ctx := c.client(), c.t.Context()
	steps := []func() error{
		func() (err error) { _, err = admin.RoleAdd(ctx, "service"); return },
		func() (err error) {
			_, err = admin.RoleGrantPermission(ctx, "service", "/teleport/v1/",
				clientv3.GetPrefixRangeEnd("/teleport/v1/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return
		},
		func() (err error) { _, err = admin.UserAdd(ctx, "orders", "orders"); return },
		func() (err error) { _, err = admin.UserGrantRole(ctx, "orders", "service"); return },
		func() (err error) { _, err = admin.UserAdd(ctx, "guest", "guest"); return },
		func() (err error) { _, err = admin.UserAdd(ctx, "root", "root"); return },
		func() (err error) { _, err = admin.UserGrantRole(ctx, "root", "root"); return },
		func() (err error) { _, err = admin.AuthEnable(ctx); return },
	}
	for _, step := range steps {
		require.NoError(c.t, step())
	}
}

// With users and passwords servers stay registered too when etcd has forgotten the tokens that it gave for
// the passwords.
func TestPasswords(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.protect()
	client := c.as("orders")
	servers := serveAll(t, client, 2, shortest)
	r := follow(t, etcd.NewResolver(c.as("orders"), "orders"))
	eventually(t, func() bool { return r.has(servers...) })

	c.stopUnder(servers)
	c.startAll()
	root := c.as("root")
	inEtcd(t, root, servers...)
	outlives(t, root)
	require.Len(t, keys(t, root, "orders"), 2)
	more := serve(t, client, "orders")
	eventually(t, func() bool { return r.has(append(servers, more)...) })
}

// A server that may not register says so, and is there for whoever knows it; when it may it registers.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	c.protect()
	s := serve(t, c.as("guest"), "orders")
	eventually(t, func() bool {
		err := s.reg.Err()
		return err != nil && strings.Contains(err.Error(), "permission denied")
	})
	require.False(t, s.reg.Registered())
	root := c.as("root")
	_, err := root.UserGrantRole(t.Context(), "guest", "service")
	require.NoError(t, err)
	inEtcd(t, root, s)
}
