package main

import (
	"context"
	"time"
)

// startReports starts two processes that keep the report, and take turns.
func (d *demonstration) startReports(ctx context.Context) error {
	first, err := d.startReport("report-1")
	if err != nil {
		return err
	}
	if err := d.until(ctx, "the first report process has counted something", d.countedMoreThan(0)); err != nil {
		return err
	}
	second, err := d.startReport("report-2")
	if err != nil {
		return err
	}
	d.note("report-1 (pid %d) counts what is sold, reading the log; report-2 (pid %d) stands by", first.pid(), second.pid())
	return nil
}

func (d *demonstration) killReport(ctx context.Context) error {
	d.step(4, "A report of what is sold is kept by a durable handler, in a process of its own, and that dies by kill -9, too.",
		"It counts an event in the transaction that moves its position: whatever dies, each event counts once. At the end the report is held against the orders.")
	d.reports[0].kill()
	killed := time.Now()
	before, err := d.counted(ctx)
	if err != nil {
		return d.cannot(ctx, "read the report", err)
	}
	d.note("report-1 is dead, with %d events counted", before)
	if err := d.until(ctx, "the second report process has taken over", d.countedMoreThan(before)); err != nil {
		return err
	}
	d.note("report-2 counts, %.1f s after the kill", time.Since(killed).Seconds())
	_, err = d.startReport("report-3") // stands by for the next one
	return err
}

func (d *demonstration) rebuild(ctx context.Context) error {
	d.step(7, "The report is cleared, and written anew from the log; half way through, its process dies by kill -9.",
		"What was made of events can be made of them again, with the shop open: pause, clear, rewind, resume.")
	before, err := d.counted(ctx)
	if err != nil {
		return d.cannot(ctx, "read the report", err)
	}
	if err := rebuildReport(ctx, d.pool, d.name, "the demonstration"); err != nil {
		return d.cannot(ctx, "rebuild the report", err)
	}
	began := time.Now()
	if err := d.until(ctx, "a part of the report is rebuilt", d.countedMoreThan(before/4)); err != nil {
		return err
	}
	d.reports[1].kill()
	killed, err := d.counted(ctx)
	if err != nil {
		return d.cannot(ctx, "read the report", err)
	}
	d.note("report-2 is dead, with %d events counted anew, of the %d that there were", killed, before)
	if err := d.until(ctx, "the report is rebuilt by the third process", d.countedMoreThan(max(before, killed))); err != nil {
		return err
	}
	d.note("report-3 went on from there: all is counted again, %.1f s after the rewind", time.Since(began).Seconds())
	return nil
}

func (d *demonstration) countedMoreThan(n int64) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		now, err := d.counted(ctx)
		return now > n, err
	}
}
