package testkit

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postbus/postbus/internal/testkit/process"
)

func init() {
	RegisterChild("says", func(args []string) { fmt.Println("said", strings.Join(args, "+")) })
	RegisterChild("fails", func([]string) { os.Exit(3) })
	RegisterChild("counts", func([]string) {
		for i := 0; ; i++ {
			fmt.Println("count", i)
			time.Sleep(time.Millisecond)
		}
	})
	RegisterChild("parent", func([]string) { // starts a grandchild, tells its pid, and waits to be killed
		t := &testing.T{}
		fmt.Println("pid", StartChild(t, "counts").PID())
		select {}
	})
	RegisterChild("serves", func([]string) {
		s := PrivatePostgres(&testing.T{})
		fmt.Println("pid", s.proc.PID, s.server.Dir)
		select {}
	})
}

func TestChildRunsItsMain(t *testing.T) {
	t.Parallel()
	c := StartChild(t, "says", "a", "b c")
	if err := c.Wait(time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := c.Output(); got != "said a+b c\n" {
		t.Errorf("got %q", got)
	}
	if err := StartChild(t, "fails").Wait(time.Minute); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a main that exits with 3: got %v", err)
	}
}

func TestChildStopsContinuesAndDies(t *testing.T) {
	t.Parallel()
	c := StartChild(t, "counts")
	Eventually(t, time.Minute, func() bool { return strings.Contains(c.Output(), "count 3") }, "the child counts")
	c.Stop()
	Eventually(t, time.Minute, func() bool { return processState(t, c.PID()) == "T" }, "the child is stopped")
	before := c.Output()
	c.Cont()
	Eventually(t, time.Minute, func() bool { return len(c.Output()) > len(before) }, "the child goes on")
	c.Kill9()
	if _, err := process.Identify(c.PID()); err == nil {
		t.Errorf("after Kill9 process %d lives", c.PID())
	}
}

func TestChildrenDieWithTheirParent(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"parent", "serves"} {
		parent := StartChild(t, name)
		Eventually(t, time.Minute, func() bool { return strings.HasSuffix(parent.Output(), "\n") }, "the grandchild starts")
		words := strings.Fields(parent.Output())
		t.Cleanup(func() { // what the dead parent could not clean up
			for _, dir := range words[2:] {
				os.RemoveAll(dir)
			}
		})
		pid, err := strconv.Atoi(words[1])
		if err != nil {
			t.Fatal(err)
		}
		id, err := process.Identify(pid)
		if err != nil {
			t.Fatal(err)
		}
		parent.Signal(syscall.SIGKILL)
		Eventually(t, time.Minute, func() bool { return !id.Alive() }, "%s: process %d follows its parent", name, pid)
	}
}

func processState(t *testing.T, pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	return strings.Fields(rest)[0]
}
