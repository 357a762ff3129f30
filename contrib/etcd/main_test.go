package etcd_test

import (
	"testing"

	"go.uber.org/goleak"

	tp "github.com/henrylee2cn/teleport"
)

func TestMain(m *testing.M) {
	tp.SetLogLevel(tp.LevelOff)
	goleak.VerifyTestMain(m)
}
