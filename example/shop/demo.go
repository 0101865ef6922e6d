package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/postbus/postbus/example/shop/internal/order"
	"github.com/postbus/postbus/example/shop/internal/payment"
)

// demonstration is one run on a stage of its own.
type demonstration struct {
	*stage
	show    *display
	journal *journal
	shop    *Shop
	ledger  *ledger
	labels  *buggyLabels
	clerks  *clerks

	fail    context.CancelCauseFunc // ends the run with an error
	running sync.WaitGroup          // of what is started by start
	relays  []*child
	reports []*child
}

// demonstrate plays all steps and reads the ledger. Whatever happens, nothing of
// the run is left behind.
func demonstrate(interrupted context.Context, broker string, show *display) (v verdict, err error) {
	stage, err := openStage(interrupted, broker)
	if err != nil {
		return v, err
	}
	defer stage.close()

	ctx, fail := context.WithCancelCause(interrupted)
	d := &demonstration{stage: stage, show: show, journal: &journal{}, labels: &buggyLabels{}, fail: fail}
	defer func() {
		fail(nil)
		stopErr := errors.Join(stop(d.relays), stop(d.reports))
		d.running.Wait()
		if err != nil && interrupted.Err() == nil {
			show.say(d.journal.String())
		}
		err = errors.Join(err, stopErr, stage.clear(ctx))
	}()
	if err := d.prepare(ctx); err != nil {
		return v, err
	}
	return d.play(ctx)
}

// prepare wires the shop, adds the ledger to it, and creates all tables.
func (d *demonstration) prepare(ctx context.Context) (err error) {
	d.ledger = &ledger{pool: d.books, onFail: d.fail}
	d.shop, err = newShop(d.pool, d.broker, Config{
		Schema: d.name, Prefix: d.prefix(),
		Mail: &flakyMail{}, Labels: d.labels,
		OnResult: d.ledger.delivered,
		Logger:   slog.New(slog.NewTextHandler(d.journal, nil)),
	})
	if err != nil {
		return err
	}
	d.clerks = &clerks{shop: d.shop}
	watch(d.ledger, d.shop, func(e order.Placed) int64 { return e.Version })
	watch(d.ledger, d.shop, func(e order.Paid) int64 { return e.Version })
	watch(d.ledger, d.shop, func(e order.Cancelled) int64 { return e.Version })
	watch(d.ledger, d.shop, func(e payment.Received) int64 { return e.Version })
	d.ledger.duty(order.Placed{}.EventType(), "mail.confirmation", false)
	d.ledger.duty(payment.Received{}.EventType(), "mail.receipt", false)
	d.ledger.duty(order.Paid{}.EventType(), "stock.ship", true)

	if err := d.broker.Declare(ctx, d.topics()); err != nil {
		return err
	}
	if err := d.shop.Install(ctx, d.name); err != nil {
		return err
	}
	if err := d.ledger.install(ctx); err != nil {
		return err
	}
	for _, sku := range catalogue {
		if err := d.shop.Fill(ctx, sku, 1_000_000); err != nil {
			return err
		}
	}
	return d.shop.Fill(ctx, soldOut, 0)
}

// play goes through the steps.
func (d *demonstration) play(ctx context.Context) (v verdict, err error) {
	routerCtx, stopRouter := context.WithCancel(ctx)
	defer stopRouter()
	routerDone := d.start("run the router", func() error { return d.shop.Run(routerCtx) })
	stopClerks := make(chan struct{})
	clerksDone := d.start("run the clerks", func() error { return d.clerks.work(ctx, stopClerks) })
	reportCtx, stopReport := context.WithCancel(ctx)
	defer stopReport()
	reportDone := d.start("watch the progress", func() error { return d.report(reportCtx) })

	for _, step := range []func(context.Context) error{d.open, d.poison, d.killRelay, d.killReport, d.duplicate, d.replay, d.rebuild} {
		if err := step(ctx); err != nil {
			return v, err
		}
	}

	d.step(8, "The shop closes: the clerks stop, relay, report and consumer finish what is left, and the ledger is read.",
		"Each event is followed by its id, from the row that the domain has written to its effects: a promise is worth what can be counted.")
	close(stopClerks)
	<-clerksDone
	if err := d.until(ctx, "all that was committed is handled", d.allHandled); err != nil && !errors.Is(err, errInVain) {
		return v, err // in vain: the ledger knows why
	}
	if err := d.until(ctx, "the report is at the end of the log", d.reported); err != nil && !errors.Is(err, errInVain) {
		return v, err
	}
	if err := errors.Join(stop(d.relays), stop(d.reports)); err != nil { // from here on nothing is published any more
		return v, err
	}
	if err := d.until(ctx, "the consumer has read and acked all that was published", d.drained); err != nil && !errors.Is(err, errInVain) {
		return v, err
	}
	stopRouter()
	<-routerDone
	stopReport()
	<-reportDone
	d.show.end()
	if ctx.Err() != nil {
		return v, context.Cause(ctx)
	}
	if err := d.ledger.readBack(ctx, d.broker, d.topics()); err != nil {
		return v, err
	}
	if v, err = judge(ctx, d.books); err != nil {
		return v, err
	}
	d.note("all is at rest: %d transactions committed, %d rolled back; the ticker, fed after commits, has seen %d orders of %.2f in all",
		d.clerks.committed.Load(), d.clerks.rolledBack.Load(), d.shop.ticker.orders.Load(), float64(d.shop.ticker.cents.Load())/100)
	d.show.say("")
	v.print(d.show)
	if !v.ok() {
		d.show.say(d.journal.String())
	}
	return v, nil
}

// cannot explains what has ended a step: the run's end, if that was it.
func (d *demonstration) cannot(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// start runs f beside everything else; its error ends the run.
func (d *demonstration) start(what string, f func() error) (done <-chan struct{}) {
	finished := make(chan struct{})
	d.running.Go(func() {
		defer close(finished)
		if err := f(); err != nil {
			d.fail(fmt.Errorf("%s: %w", what, err))
		}
	})
	return finished
}

func (d *demonstration) startRelay(name string) (*child, error) {
	p, err := startChild(relayCommand, name, d.stage, d.journal, d.fail)
	if err == nil {
		d.relays = append(d.relays, p)
	}
	return p, err
}

func (d *demonstration) startReport(name string) (*child, error) {
	p, err := startChild(reportCommand, name, d.stage, d.journal, d.fail)
	if err == nil {
		d.reports = append(d.reports, p)
	}
	return p, err
}

func stop(all []*child) (err error) {
	for _, p := range all {
		err = errors.Join(err, p.stop())
	}
	return err
}

// patience is for machines that have other things to do.
const patience = 90 * time.Second

var errInVain = errors.New("waited in vain")

// until waits for a condition, and returns the error that has ended the run
// meanwhile, if one has.
func (d *demonstration) until(ctx context.Context, what string, cond func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("%w until %s: %s", errInVain, what, patience))
	defer cancel()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		ok, err := cond(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("find out whether %s: %w", what, err)
		case ok:
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
}

// watchFor lets people look on.
func (d *demonstration) watchFor(ctx context.Context, length time.Duration) error {
	over := time.NewTimer(length)
	defer over.Stop()
	select {
	case <-over.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (d *demonstration) step(n int, what, why string)    { d.show.step(n, 8, what, why) }
func (d *demonstration) note(format string, args ...any) { d.show.note(format, args...) }
