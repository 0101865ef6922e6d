package main

import (
	"strings"
	"testing"
)

func TestPgBouncerStandsBeforeTheAddress(t *testing.T) {
	t.Parallel()
	ini, err := pgbouncerConfig("postgres://me:it's%20me@db.example:6543/app?sslmode=require", 7000)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"* = host=db.example user='me' port=6543 password='it''s me'\n", "listen_port = 7000\n", "pool_mode = transaction\n",
	} {
		if !strings.Contains(ini, want) {
			t.Errorf("no %q in\n%s", want, ini)
		}
	}
}
