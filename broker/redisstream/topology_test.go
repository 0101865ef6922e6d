package redisstream

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

func TestTopology(t *testing.T) {
	noLeaks(t)
	c, prefix := testkit.Redis(t), testkit.Prefix(t)
	ctx := context.Background()
	plain, divided := prefix+"plain", prefix+"divided"
	top := Topology{Topics: []Topic{
		{Name: plain, Groups: []string{"billing", "mail"}},
		{Name: divided, Shards: 2, Groups: []string{"billing"}, Start: FromNow},
	}}
	want := `stream "` + plain + `", read from beginning by "billing" "mail"
stream "` + divided + `" in 2 shards, "{` + divided + `:0}" to "{` + divided + `:1}", read from now by "billing"
`
	if got := top.Describe(); got != want {
		t.Errorf("it describes itself as\n%s\nwant\n%s", got, want)
	}
	if err := top.Check(ctx, c); !errors.Is(err, ErrNoGroup) || strings.Count(err.Error(), "Topology.Declare") != 4 {
		t.Errorf("before: %v", err)
	}
	for range 2 { // what exists is left alone
		if err := top.Declare(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := top.Check(ctx, c); err != nil {
		t.Errorf("after: %v", err)
	}
	c.Set(ctx, prefix+"string", "x", 0)
	wrong := Topology{Topics: []Topic{{Name: prefix + "string", Groups: []string{"g"}}, {Name: prefix + "other", Groups: []string{"g"}}}}
	var refused *CommandError
	if err := wrong.Declare(ctx, c); !errors.As(err, &refused) || !strings.Contains(err.Error(), "rename") {
		t.Errorf("a key of another type: %v", err)
	}
	if n := len(c.XInfoGroups(ctx, prefix+"other").Val()); n != 1 {
		t.Error("one fault kept the others from being declared")
	}
	bad := Topology{Topics: []Topic{{Shards: -1, Groups: []string{""}, Start: 7}}}
	err := bad.Declare(ctx, nil)
	for _, fault := range []string{"Client is nil", "Name is empty", "Shards is -1", "empty name", "Start is 7"} {
		if !errors.Is(err, ErrInvalidConfig) || !strings.Contains(err.Error(), fault) {
			t.Errorf("%q is missing in %v", fault, err)
		}
	}
}
