# What CloudWatch has no figures for and the log has words for: filters count its lines, and alarms stand on the counts.
#
# walhouse's own metrics do not come to CloudWatch. These lines do, as long as log.level lets warnings through, and those of
# trouble that goes on come again: every half a minute, and every five minutes for a pause.

locals {
  told = {
    paused = {
      messages    = ["the pipeline is paused*"]
      title       = "is paused"
      description = <<-EOT
        The pipeline has been paused for half an hour: ClickHouse stands still, and PostgreSQL keeps WAL. walhouse status
        says who has paused it, when and why, and walhouse resume lets it go on. docs/runbooks.md: WalhousePaused.
      EOT
      severity    = "warning"
      # Told every five minutes.
      period    = 600
      periods   = 3
      threshold = 1
    }
    payloads = {
      messages = [
        "an event that is too large for a queue can not be put into the object store*",
        "events whose payload is in the object store wait*",
      ]
      title       = "does not reach the object store"
      description = <<-EOT
        Payloads have not been put into the object store, or not been read from it, for ten minutes: large events wait,
        and where they are not put the slot waits too. docs/runbooks.md: WalhousePayloadsFail.
      EOT
      severity    = "warning"
      period      = 300
      periods     = 2
      threshold   = 1
    }
    unsent = {
      messages    = ["events are not sent; they wait*"]
      title       = "does not send events"
      description = <<-EOT
        SQS has not taken events for ten minutes. They wait in PostgreSQL's WAL, and so does the slot. docs/runbooks.md:
        WalhouseQueueRequestsFail.
      EOT
      severity    = "warning"
      period      = 300
      periods     = 2
      threshold   = 1
    }
    stopped = {
      messages    = ["a table stops; the others go on"]
      title       = "has stopped a table"
      description = <<-EOT
        A table has stopped, and is in ClickHouse as it was by then; the others go on. The alarm ends by itself, and the
        table stays stopped: walhouse status names it. docs/runbooks.md: WalhouseTableStopped.
      EOT
      severity    = "warning"
      period      = 300
      periods     = 1
      threshold   = 1
    }
    lost_rows = {
      messages    = ["rows went to the dead letters*"]
      title       = "has rows that their tables do not take"
      description = <<-EOT
        Rows did not fit into their tables in ClickHouse, and are in _dead_letters. The alarm ends by itself, and they
        stay there. docs/runbooks.md: WalhouseDeadLetters.
      EOT
      severity    = "warning"
      period      = 300
      periods     = 1
      threshold   = 1
    }
    broken_off = {
      messages    = ["the session ended; going on from the checkpoint"]
      title       = "breaks off again and again"
      description = <<-EOT
        More than five sessions have ended within ten minutes. Nothing is lost, and work is repeated. docs/runbooks.md:
        WalhouseReconnects.
      EOT
      severity    = "warning"
      period      = 600
      periods     = 1
      threshold   = 6
    }
    restarts = {
      messages    = ["walhouse starts"]
      title       = "is started again and again"
      description = <<-EOT
        walhouse was started more than twice within a quarter of an hour: what it halts over is in the last lines before
        each start. docs/runbooks.md: WalhouseRestarts.
      EOT
      severity    = "warning"
      period      = 900
      periods     = 1
      threshold   = 3
    }
  }
}

resource "aws_cloudwatch_log_metric_filter" "told" {
  for_each = local.told

  name           = "${var.name}-${each.key}"
  log_group_name = aws_cloudwatch_log_group.walhouse.name
  pattern = format("{ %s }", join(" || ", [
    for message in each.value.messages : format("($.message = \"%s\")", message)
  ]))

  metric_transformation {
    namespace = "walhouse/${var.name}"
    name      = each.key
    value     = "1"
  }
}

resource "aws_cloudwatch_metric_alarm" "told" {
  for_each = local.told

  alarm_name = "${var.name} ${each.value.title}"
  alarm_description = join(" ", [
    replace(trimspace(each.value.description), "\n", " "),
    local.severities[each.value.severity],
  ])

  namespace   = aws_cloudwatch_log_metric_filter.told[each.key].metric_transformation[0].namespace
  metric_name = aws_cloudwatch_log_metric_filter.told[each.key].metric_transformation[0].name

  statistic           = "Sum"
  period              = each.value.period
  evaluation_periods  = each.value.periods
  datapoints_to_alarm = each.value.periods
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = each.value.threshold
  # Without such a line there is no figure.
  treat_missing_data = "notBreaching"

  alarm_actions = [aws_sns_topic.alarms[each.value.severity].arn]
  ok_actions    = [aws_sns_topic.alarms[each.value.severity].arn]
}
