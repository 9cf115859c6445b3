# The queues and those of their dead letters, as `walhouse provision` would make them. tests/terraform.rs holds the
# numbers here to the code's.

locals {
  queues = {
    # Seconds of a handler's time, and how often a message is received before it is a dead letter: once, and for each
    # retry.
    data-sync        = { timeout = 30, receives = 4 }
    async-operations = { timeout = 300, receives = 3 }
    audit-log        = { timeout = 5, receives = 4 }
  }

  # Beyond the handler's time, for what lies before and after it.
  grace = 30

  suffix = var.fifo ? ".fifo" : ""
}

resource "aws_sqs_queue" "dead" {
  for_each = local.queues

  name       = "${var.prefix}${each.key}-dlq${local.suffix}"
  fifo_queue = var.fifo

  # The longest that SQS knows. Where SQS itself moves a message, the clock goes on that began when it was first sent.
  message_retention_seconds = 1209600

  # As much as SQS takes; the provider's default is a quarter of it.
  max_message_size        = 1048576
  sqs_managed_sse_enabled = true
}

resource "aws_sqs_queue" "live" {
  for_each = local.queues

  name       = "${var.prefix}${each.key}-queue${local.suffix}"
  fifo_queue = var.fifo

  message_retention_seconds  = 1123200
  visibility_timeout_seconds = floor(lookup(var.timeouts, each.key, each.value.timeout)) + local.grace
  receive_wait_time_seconds  = 20
  max_message_size           = 1048576
  sqs_managed_sse_enabled    = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead[each.key].arn
    maxReceiveCount     = each.value.receives
  })
}

# Nobody else's messages end up among the dead letters.
resource "aws_sqs_queue_redrive_allow_policy" "dead" {
  for_each = local.queues

  queue_url = aws_sqs_queue.dead[each.key].url
  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.live[each.key].arn]
  })
}

locals {
  all_queues = merge(
    { for name, queue in aws_sqs_queue.live : "${name}-queue" => queue },
    { for name, queue in aws_sqs_queue.dead : "${name}-dlq" => queue },
  )
}

data "aws_iam_policy_document" "encrypted" {
  # Its keys are known before the queues are.
  for_each = toset(flatten([for name in keys(local.queues) : ["${name}-queue", "${name}-dlq"]]))

  # It grants nothing: who may use a queue is said by the identities' own policies.
  statement {
    sid       = "NothingInPlainText"
    effect    = "Deny"
    actions   = ["sqs:*"]
    resources = [local.all_queues[each.key].arn]

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

resource "aws_sqs_queue_policy" "encrypted" {
  for_each = data.aws_iam_policy_document.encrypted

  queue_url = local.all_queues[each.key].url
  policy    = each.value.json
}
