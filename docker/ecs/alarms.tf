# Alarms: what is wrong, how soon somebody looks at it, and who comes next. They stand on what SQS, ECS and RDS tell
# CloudWatch, and tell also when walhouse itself is gone; those of log_alarms.tf stand on its log. Latency, and what else
# walhouse alone measures, are Prometheus's alerts.

locals {
  severities = {
    critical = "Severity: critical. Acknowledge within 15 minutes. Escalation: on-call engineer, then lead engineer."
    warning  = "Severity: warning. Investigate within 1 hour. Escalation: on-call engineer."
  }

  # Seconds for which a message may wait. A report may keep its worker busy for five minutes, and others wait behind it.
  longest_wait = {
    data-sync        = 300
    async-operations = 1800
    audit-log        = 300
  }
}

resource "aws_sns_topic" "alarms" {
  for_each = local.severities

  # Not encrypted with AWS's own key for SNS: CloudWatch may not use that one, and its alarms would reach nobody. They
  # hold no data of rows.
  name         = "${var.name}-${each.key}"
  display_name = "${var.name} ${each.key}"
}

data "aws_iam_policy_document" "alarms" {
  for_each = local.severities

  statement {
    sid       = "AlarmsOfThisAccount"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.alarms[each.key].arn]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }

  statement {
    sid       = "NothingInPlainText"
    effect    = "Deny"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.alarms[each.key].arn]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

resource "aws_sns_topic_policy" "alarms" {
  for_each = local.severities

  arn    = aws_sns_topic.alarms[each.key].arn
  policy = data.aws_iam_policy_document.alarms[each.key].json
}

# Each address has to confirm the first message that it gets.
resource "aws_sns_topic_subscription" "critical" {
  for_each = toset(var.subscribers.critical)

  topic_arn = aws_sns_topic.alarms["critical"].arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_sns_topic_subscription" "warning" {
  for_each = toset(var.subscribers.warning)

  topic_arn = aws_sns_topic.alarms["warning"].arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_cloudwatch_metric_alarm" "dead_letters" {
  for_each = local.queues

  alarm_name = "${var.name} ${aws_sqs_queue.dead[each.key].name} has messages"
  alarm_description = join(" ", [
    "Events that could not be handled are in ${aws_sqs_queue.dead[each.key].name}, and stay until somebody acts.",
    "Look at them: walhouse dlq list --queue ${each.key}; docs/recovery.md tells the rest.",
    local.severities.critical,
  ])

  namespace   = "AWS/SQS"
  metric_name = "ApproximateNumberOfMessagesVisible"
  dimensions  = { QueueName = aws_sqs_queue.dead[each.key].name }

  # Above 0 for five minutes.
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 5
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  # A queue that nobody has used for hours and that is empty has no figures.
  treat_missing_data = "notBreaching"

  alarm_actions = [aws_sns_topic.alarms["critical"].arn]
  ok_actions    = [aws_sns_topic.alarms["critical"].arn]
}

resource "aws_cloudwatch_metric_alarm" "waiting" {
  for_each = local.queues

  alarm_name = "${var.name} ${aws_sqs_queue.live[each.key].name} is not handled"
  alarm_description = join(" ", [
    "A message in ${aws_sqs_queue.live[each.key].name} has waited for more than ${local.longest_wait[each.key]} s:",
    "its worker is off, waits for ClickHouse, or is slower than what comes. After thirteen days a message is gone.",
    local.severities.warning,
  ])

  namespace   = "AWS/SQS"
  metric_name = "ApproximateAgeOfOldestMessage"
  dimensions  = { QueueName = aws_sqs_queue.live[each.key].name }

  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 3
  datapoints_to_alarm = 3
  comparison_operator = "GreaterThanThreshold"
  threshold           = local.longest_wait[each.key]
  treat_missing_data  = "notBreaching"

  alarm_actions = [aws_sns_topic.alarms["warning"].arn]
  ok_actions    = [aws_sns_topic.alarms["warning"].arn]
}

resource "aws_cloudwatch_metric_alarm" "gone" {
  alarm_name = "${var.name} does not run"
  alarm_description = join(" ", [
    "No task of the service ${var.name} has run for five minutes, and PostgreSQL keeps WAL until one does.",
    "See the service's events, and the log group ${aws_cloudwatch_log_group.walhouse.name} for what it halted over.",
    local.severities.critical,
  ])

  # Each task gives samples, so without any there are none; unlike RunningTaskCount it needs no Container Insights.
  namespace   = "AWS/ECS"
  metric_name = "CPUUtilization"
  dimensions  = { ClusterName = var.cluster, ServiceName = aws_ecs_service.walhouse.name }

  statistic           = "SampleCount"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 5
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"

  alarm_actions = [aws_sns_topic.alarms["critical"].arn]
  ok_actions    = [aws_sns_topic.alarms["critical"].arn]
}

resource "aws_cloudwatch_metric_alarm" "retained" {
  count = var.database_instance == null ? 0 : 1

  alarm_name = "${var.name} ${var.database_instance} retains WAL"
  alarm_description = join(" ", [
    "A replication slot of ${var.database_instance} holds back more than ${var.retained_wal_gib} GiB of WAL:",
    "walhouse does not run, or ClickHouse or SQS does not take what it sends.",
    "Past max_slot_wal_keep_size the slot is lost, and everything has to be copied anew.",
    local.severities.critical,
  ])

  namespace   = "AWS/RDS"
  metric_name = "OldestReplicationSlotLag"
  dimensions  = { DBInstanceIdentifier = var.database_instance }

  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 5
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.retained_wal_gib * 1024 * 1024 * 1024
  treat_missing_data  = "notBreaching"

  alarm_actions = [aws_sns_topic.alarms["critical"].arn]
  ok_actions    = [aws_sns_topic.alarms["critical"].arn]
}

# Half of the way to the alarm on WAL that slots retain, whatever keeps it: a slot, an archive that fails, a standby.
resource "aws_cloudwatch_metric_alarm" "wal" {
  count = var.database_instance == null ? 0 : 1

  alarm_name = "${var.name} ${var.database_instance} has much WAL"
  alarm_description = join(" ", [
    "The WAL of ${var.database_instance} takes more than ${var.retained_wal_gib / 2} GiB of its disk.",
    "If it still grows, look at what keeps it: SELECT slot_name, active, restart_lsn FROM pg_replication_slots.",
    local.severities.warning,
  ])

  namespace   = "AWS/RDS"
  metric_name = "TransactionLogsDiskUsage"
  dimensions  = { DBInstanceIdentifier = var.database_instance }

  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 15
  datapoints_to_alarm = 15
  comparison_operator = "GreaterThanThreshold"
  threshold           = var.retained_wal_gib * 1024 * 1024 * 1024 / 2
  treat_missing_data  = "notBreaching"

  alarm_actions = [aws_sns_topic.alarms["warning"].arn]
  ok_actions    = [aws_sns_topic.alarms["warning"].arn]
}

resource "aws_cloudwatch_metric_alarm" "disk" {
  count = var.database_instance == null ? 0 : 1

  alarm_name = "${var.name} ${var.database_instance} has little disk left"
  alarm_description = join(" ", [
    "Less than ${var.free_storage_gib} GiB of the disk of ${var.database_instance} are free. If WAL takes the rest,",
    "PostgreSQL stops. Look at what slots retain first; docs/runbooks.md: WalhouseWalRetained.",
    local.severities.critical,
  ])

  namespace   = "AWS/RDS"
  metric_name = "FreeStorageSpace"
  dimensions  = { DBInstanceIdentifier = var.database_instance }

  statistic           = "Minimum"
  period              = 60
  evaluation_periods  = 5
  datapoints_to_alarm = 5
  comparison_operator = "LessThanThreshold"
  threshold           = var.free_storage_gib * 1024 * 1024 * 1024
  treat_missing_data  = "notBreaching"

  alarm_actions = [aws_sns_topic.alarms["critical"].arn]
  ok_actions    = [aws_sns_topic.alarms["critical"].arn]
}

# A task that takes more memory than it has is killed.
resource "aws_cloudwatch_metric_alarm" "memory" {
  alarm_name = "${var.name} needs nearly all of its memory"
  alarm_description = join(" ", [
    "The task has used more than 90 % of its ${var.memory} MiB for a quarter of an hour. Beyond them it is killed and",
    "begun again, which loses nothing. Lower memory.budget and queue.budget, or give the task more.",
    local.severities.warning,
  ])

  namespace   = "AWS/ECS"
  metric_name = "MemoryUtilization"
  dimensions  = { ClusterName = var.cluster, ServiceName = aws_ecs_service.walhouse.name }

  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 15
  datapoints_to_alarm = 15
  comparison_operator = "GreaterThanThreshold"
  threshold           = 90
  treat_missing_data  = "notBreaching"

  alarm_actions = [aws_sns_topic.alarms["warning"].arn]
  ok_actions    = [aws_sns_topic.alarms["warning"].arn]
}
