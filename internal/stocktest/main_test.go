package stocktest

import (
	"testing"

	"github.com/postbus/postbus/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
